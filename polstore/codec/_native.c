/* The inner loops of the codec, compiled: bit for bit what the numpy code of the modules beside this file does.
 *
 * Every function works on whole buffers, checks that their sizes belong together, and lets go of the interpreter's
 * lock where there is much to do. No number is rounded otherwise than the source says: contraction is off (setup.py),
 * and sums are the only place where an order is chosen. Knows no encodings and no tensors; _native.pyi says what each
 * function does. Where a compiler cannot keep to this, it is an error, and numpy does the work.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* Python 3.11, where buffers became a part of it */
#include <Python.h>

#include <float.h>
#include <stdint.h>
#include <string.h>

#if !PY_LITTLE_ENDIAN
#error "little-endian machines only"
#endif
/* 16 is about types narrower than float; x87 without SSE has 2. */
#if defined(__FAST_MATH__) || (FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16)
#error "every operation on float must be rounded to float, and NaN be NaN"
#endif
#if defined(_MSC_VER)
#pragma fp_contract(off)
#endif

/* Buffers may begin anywhere, and the same memory is looked at as numbers and as bits. */
#if defined(__GNUC__)
#define UNALIGNED __attribute__((aligned(1), may_alias))
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define UNALIGNED
#define ALWAYS_INLINE static __forceinline
#define restrict __restrict
#endif

typedef float UNALIGNED f4;
typedef double UNALIGNED f8;
typedef uint8_t u1;
typedef uint16_t UNALIGNED u2;
typedef int16_t UNALIGNED i2;
typedef uint32_t UNALIGNED u4;

/* The same loop for processors with and without AVX2; which one runs is found out when the module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define LOOP __attribute__((target_clones("avx2", "default"))) static
#else
#define LOOP static
#endif

#define PLACE 0x9E3779B1u      /* polstore.codec.proportion.PLACE */
#define MAGNITUDE 0x7FFFFFFFu  /* the bits of a float32 without its sign */
#define NOT_A_NUMBER 0x7FC00000u
#define MUCH 16384             /* elements that are worth letting go of the interpreter's lock */
#define LANES 8                /* sums that are taken side by side */

ALWAYS_INLINE uint32_t word_of(float value)
{
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    return word;
}

ALWAYS_INLINE float float_of(uint32_t word)
{
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* float16 and float32: polstore.codec.halves */

ALWAYS_INLINE uint32_t half_of(float value)
{
    uint32_t word = word_of(value);
    uint32_t magnitude = word & MAGNITUDE;
    uint32_t normal = (magnitude + ((magnitude >> 13) & 1u) + (0xFFFu - (112u << 23))) >> 13;
    uint32_t small = word_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
    return (magnitude < 0x38800000u ? small : normal) | ((word >> 16) & 0x8000u);
}

ALWAYS_INLINE float float_of_half(uint32_t half)
{
    uint32_t magnitude = (half & 0x7FFFu) << 13;
    uint32_t small = word_of(float_of(magnitude + (113u << 23)) - float_of(113u << 23));
    uint32_t normal = magnitude + (112u << 23) + (magnitude >= (31u << 23) ? 112u << 23 : 0u);
    return float_of((magnitude < (1u << 23) ? small : normal) | ((half & 0x8000u) << 16));
}

/* A sum, or the one NaN: which of two a processor passes on, and with what sign it makes one, is nowhere laid down. */
ALWAYS_INLINE float sum_of(float one, float other)
{
    float sum = one + other;
    return sum == sum ? sum : float_of(NOT_A_NUMBER);
}

/* Integers in the order of the numbers, and small codes for small differences: polstore.codec.planes */

ALWAYS_INLINE uint32_t ordered(uint32_t word)
{
    return word ^ ((uint32_t)((int32_t)word >> 31) & MAGNITUDE);
}

ALWAYS_INLINE uint32_t zigzag(uint32_t difference)
{
    return (difference << 1) ^ (uint32_t)((int32_t)difference >> 31);
}

ALWAYS_INLINE uint32_t unzigzag(uint32_t code)
{
    return (code >> 1) ^ (0u - (code & 1u));
}

ALWAYS_INLINE uint16_t zigzag16(uint32_t difference)
{
    return (uint16_t)zigzag((uint32_t)(int32_t)(int16_t)difference);
}

ALWAYS_INLINE uint32_t unzigzag16(uint16_t code)
{
    return (uint32_t)(code >> 1) ^ (0u - (code & 1u)); /* the low 16 bits of it count */
}

/* Planes */

LOOP void split2(const u2 *restrict items, Py_ssize_t n, u1 *restrict planes)
{
    u1 *restrict low = planes, *restrict high = planes + n;
    for (Py_ssize_t i = 0; i < n; i++) {
        low[i] = (u1)items[i];
        high[i] = (u1)(items[i] >> 8);
    }
}

LOOP void split4(const u4 *restrict items, Py_ssize_t n, u1 *restrict planes)
{
    u1 *restrict a = planes, *restrict b = planes + n, *restrict c = planes + 2 * n, *restrict d = planes + 3 * n;
    for (Py_ssize_t i = 0; i < n; i++) {
        a[i] = (u1)items[i];
        b[i] = (u1)(items[i] >> 8);
        c[i] = (u1)(items[i] >> 16);
        d[i] = (u1)(items[i] >> 24);
    }
}

LOOP void join2(const u1 *restrict low, const u1 *restrict high, Py_ssize_t n, u2 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++)
        items[i] = (uint16_t)(low[i] | high[i] << 8);
}

LOOP void join4(const u1 *restrict a, const u1 *restrict b, const u1 *restrict c, const u1 *restrict d, Py_ssize_t n,
                u4 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++)
        items[i] = (uint32_t)a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)d[i] << 24;
}

/* Items to values and back */

LOOP void do_rotate_left(const u2 *restrict words, Py_ssize_t n, u2 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++)
        items[i] = (uint16_t)(words[i] << 1 | words[i] >> 15);
}

LOOP void do_from_rotated(const u2 *restrict items, Py_ssize_t n, u4 *restrict out)
{
    for (Py_ssize_t i = 0; i < n; i++)
        out[i] = (uint32_t)items[i] >> 1 << 16 | (uint32_t)items[i] << 31;
}

LOOP void do_from_upper(const u2 *restrict upper, Py_ssize_t n, u4 *restrict out)
{
    for (Py_ssize_t i = 0; i < n; i++)
        out[i] = (uint32_t)upper[i] << 16;
}

LOOP void do_add_halves(const f4 *restrict base, const u2 *restrict halves, float scale, Py_ssize_t n, f4 *restrict out)
{
    for (Py_ssize_t i = 0; i < n; i++)
        out[i] = sum_of(base[i], float_of_half(halves[i]) * scale);
}

LOOP void do_add_steps(const f4 *restrict base, const i2 *restrict steps, float scale, Py_ssize_t n, f4 *restrict out)
{
    for (Py_ssize_t i = 0; i < n; i++)
        out[i] = sum_of(base[i], (float)steps[i] * scale);
}

LOOP void do_zigzag(const u2 *restrict steps, Py_ssize_t n, u2 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++)
        items[i] = zigzag16(steps[i]);
}

LOOP void do_unzigzag(const u2 *restrict items, Py_ssize_t n, u2 *restrict steps)
{
    for (Py_ssize_t i = 0; i < n; i++)
        steps[i] = (uint16_t)unzigzag16(items[i]);
}

LOOP void do_difference(const u4 *restrict values, const u4 *restrict base, Py_ssize_t n, u4 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++)
        items[i] = zigzag(ordered(values[i]) - ordered(base[i]));
}

LOOP void do_from_difference(const u4 *restrict items, const u4 *restrict base, Py_ssize_t n, u4 *restrict out)
{
    for (Py_ssize_t i = 0; i < n; i++)
        out[i] = ordered(ordered(base[i]) + unzigzag(items[i]));
}

LOOP void do_short_difference(const u2 *restrict upper, const u4 *restrict base, Py_ssize_t n, u2 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        int32_t value = (int32_t)ordered((uint32_t)upper[i] << 16) >> 18;
        int32_t under = (int32_t)ordered(base[i]) >> 18;
        items[i] = zigzag16((uint32_t)value - (uint32_t)under);
    }
}

LOOP void do_from_short_difference(const u2 *restrict items, const u4 *restrict base, Py_ssize_t n, u4 *restrict out)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t under = (uint32_t)((int32_t)ordered(base[i]) >> 18);
        uint32_t value = under + (uint32_t)(int16_t)unzigzag16(items[i]);
        out[i] = ordered(value << 18) & 0xFFFC0000u; /* of negative numbers, ordered() sets the low bits */
    }
}

/* Distances: polstore.codec.norms */

typedef struct {
    double l1, squares, largest, dot, start, end;
} Sums;

#define DISTANCES(name, type)                                                                                          \
    LOOP void name(const type *restrict before, const type *restrict after, Py_ssize_t n, Sums *sums)                  \
    {                                                                                                                  \
        double l1[LANES] = {0}, squares[LANES] = {0}, dot[LANES] = {0}, start[LANES] = {0}, end[LANES] = {0};          \
        uint64_t largest[LANES] = {0}; /* bits of magnitudes are in their order, with NaN above all */                 \
        Py_ssize_t whole = n - n % LANES;                                                                              \
        for (Py_ssize_t i = 0; i < whole; i += LANES)                                                                  \
            for (int k = 0; k < LANES; k++)                                                                            \
                DISTANCE(before[i + k], after[i + k], k)                                                               \
        for (Py_ssize_t i = whole; i < n; i++)                                                                         \
            DISTANCE(before[i], after[i], 0)                                                                           \
        for (int k = 0; k < LANES; k++) {                                                                              \
            double peak;                                                                                               \
            memcpy(&peak, &largest[k], sizeof peak);                                                                   \
            sums->l1 += l1[k];                                                                                         \
            sums->squares += squares[k];                                                                               \
            sums->dot += dot[k];                                                                                       \
            sums->start += start[k];                                                                                   \
            sums->end += end[k];                                                                                       \
            if (!(peak <= sums->largest) && sums->largest == sums->largest)                                            \
                sums->largest = peak;                                                                                  \
        }                                                                                                              \
    }
#define DISTANCE(one, other, k)                                                                                        \
    {                                                                                                                  \
        double b = (double)(one), a = (double)(other), d = a - b;                                                      \
        uint64_t bits;                                                                                                 \
        memcpy(&bits, &d, sizeof bits);                                                                                \
        bits &= 0x7FFFFFFFFFFFFFFFu;                                                                                   \
        memcpy(&d, &bits, sizeof d);                                                                                   \
        l1[k] += d;                                                                                                    \
        squares[k] += d * d;                                                                                           \
        largest[k] = bits > largest[k] ? bits : largest[k];                                                            \
        dot[k] += b * a;                                                                                               \
        start[k] += b * b;                                                                                             \
        end[k] += a * a;                                                                                               \
    }
DISTANCES(distances4, f4)
DISTANCES(distances8, f8)

/* Live values to items: polstore.codec.quantise and polstore.codec.proportion */

LOOP uint32_t most(const u4 *restrict values, Py_ssize_t n)
{
    uint32_t found = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t magnitude = values[i] & MAGNITUDE;
        found = magnitude > found ? magnitude : found;
    }
    return found;
}

LOOP uint32_t most_between(const f4 *restrict live, const f4 *restrict base, Py_ssize_t n)
{
    uint32_t found = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t magnitude = word_of(live[i] - base[i]) & MAGNITUDE;
        found = magnitude > found ? magnitude : found;
    }
    return found;
}

LOOP void do_to_halves(f4 *restrict live, const f4 *restrict base, float inverse, float scale, int back, Py_ssize_t n,
                       u2 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t half = half_of((live[i] - base[i]) * inverse);
        items[i] = (uint16_t)half;
        if (back)
            live[i] = base[i] + float_of_half(half) * scale;
    }
}

/* What an integer cannot hold, NaN too, has to become something: the callers' bounds do not let it come to that. */
ALWAYS_INLINE int32_t at_most(float value, float limit)
{
    return (int32_t)(value < limit ? value : limit);
}

LOOP void do_fine_sums(const f4 *restrict live, const f4 *restrict base, float scale, Py_ssize_t n, uint64_t *squares,
                       uint64_t *count)
{
    uint64_t sum = 0, some = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        float delta = live[i] - base[i];
        int32_t fine = at_most(float_of(word_of(delta) & MAGNITUDE) * scale, 4096.0f); /* towards zero */
        sum += (uint32_t)(fine * fine);
        some += delta != 0;
    }
    *squares = sum;
    *count = some;
}

ALWAYS_INLINE int32_t step_of(float delta, float inverse, uint32_t threshold)
{
    float between = (float)(int32_t)(threshold >> 8) * 0x1p-24f;
    int32_t whole = at_most(float_of(word_of(delta) & MAGNITUDE) * inverse + between, 32767.0f); /* towards zero */
    return delta < 0 ? -whole : whole;
}

LOOP void do_to_steps(f4 *restrict live, const f4 *restrict base, float inverse, float scale, uint32_t threshold,
                      int back, Py_ssize_t n, i2 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        int32_t step = step_of(live[i] - base[i], inverse, threshold + (uint32_t)i * PLACE);
        items[i] = (int16_t)step;
        if (back)
            live[i] = base[i] + (float)step * scale;
    }
}

ALWAYS_INLINE uint32_t upper_of(uint32_t word, uint32_t threshold, int dropped, uint32_t keep)
{
    uint32_t rounded = (word + (threshold >> (32 - dropped))) >> dropped;
    uint32_t lost = (rounded & (MAGNITUDE >> dropped)) == 0 && (word & MAGNITUDE) != 0;
    return (rounded | (lost & keep)) << (dropped - 16);
}

LOOP void do_to_upper(u4 *restrict live, uint32_t threshold, int dropped, uint32_t keep, int back, Py_ssize_t n,
                      u2 *restrict items)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t upper = upper_of(live[i], threshold + (uint32_t)i * PLACE, dropped, keep);
        items[i] = (uint16_t)upper;
        if (back)
            live[i] = upper << 16;
    }
}

/* Python's side: buffers in, sizes compared, the lock let go of. */

#define MOST_BUFFERS 5

typedef struct {
    Py_buffer of[MOST_BUFFERS];
    int held;
} Buffers;

static void release(Buffers *buffers)
{
    while (buffers->held)
        PyBuffer_Release(&buffers->of[--buffers->held]);
}

static int overlap(const Py_buffer *one, const Py_buffer *other)
{
    const char *a = one->buf, *b = other->buf;
    return one->len > 0 && other->len > 0 && a < b + other->len && b < a + one->len;
}

/* Take the buffers of the first arguments; `sizes` are bytes an element, negative where the buffer is written to. Returns
 * the number of elements, which all have; -1 with an exception set if they do not, or if one that is written to shares
 * memory with another: the loops are told that none does. */
static Py_ssize_t take(PyObject *args, const int *sizes, int count, Buffers *buffers)
{
    Py_ssize_t elements = -1;
    buffers->held = 0;
    for (int i = 0; i < count; i++) {
        int size = sizes[i] < 0 ? -sizes[i] : sizes[i];
        PyObject *arg = PyTuple_GetItem(args, i);
        if (arg == NULL || PyObject_GetBuffer(arg, &buffers->of[i], sizes[i] < 0 ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
            release(buffers);
            return -1;
        }
        buffers->held++;
        Py_ssize_t length = buffers->of[i].len, own = length / size;
        if (length % size)
            PyErr_Format(PyExc_ValueError, "buffer %d has %zd bytes, expected a multiple of %d", i, length, size);
        else if (i > 0 && own != elements)
            PyErr_Format(PyExc_ValueError, "buffer %d has %zd bytes, expected %zd", i, length, elements * size);
        for (int j = 0; j < i; j++)
            if ((sizes[i] < 0 || sizes[j] < 0) && overlap(&buffers->of[i], &buffers->of[j]))
                PyErr_Format(PyExc_ValueError, "buffers %d and %d share memory", j, i);
        if (PyErr_Occurred()) {
            release(buffers);
            return -1;
        }
        elements = own;
    }
    return elements;
}

#define ARGS(...)                                                                                                      \
    static const int sizes[] = {__VA_ARGS__};                                                                          \
    Buffers buffers;                                                                                                   \
    Py_ssize_t n = take(args, sizes, (int)(sizeof sizes / sizeof *sizes), &buffers);                                   \
    if (n < 0)                                                                                                         \
        return NULL;
#define IN(i) (buffers.of[i].buf)
#define WORK(call)                                                                                                     \
    {                                                                                                                  \
        PyThreadState *state = n > MUCH ? PyEval_SaveThread() : NULL;                                                  \
        call;                                                                                                          \
        if (state)                                                                                                     \
            PyEval_RestoreThread(state);                                                                               \
        release(&buffers);                                                                                             \
    }
#define FUNCTION(name) static PyObject *name(PyObject *Py_UNUSED(module), PyObject *args)
/* The arguments after the buffers. */
#define NUMBERS(first, format, ...)                                                                                    \
    PyObject *rest = PyTuple_GetSlice(args, first, PyTuple_Size(args));                                                \
    int parsed = rest != NULL && PyArg_ParseTuple(rest, format, __VA_ARGS__);                                          \
    Py_XDECREF(rest);                                                                                                  \
    if (!parsed)                                                                                                       \
        return NULL;

/* That there are no arguments but the buffers. */
#define EXACTLY(count)                                                                                                 \
    if (PyTuple_Size(args) != (count))                                                                                 \
        return PyErr_Format(PyExc_TypeError, "%zd arguments, expected %d", PyTuple_Size(args), count);

#define PLAIN(name, loop, from, to)                                                                                    \
    FUNCTION(name)                                                                                                     \
    {                                                                                                                  \
        EXACTLY(2)                                                                                                     \
        ARGS(from, -(to))                                                                                              \
        WORK(loop(IN(0), n, IN(1)))                                                                                    \
        Py_RETURN_NONE;                                                                                                \
    }
PLAIN(rotate_left, do_rotate_left, 2, 2)
PLAIN(from_rotated, do_from_rotated, 2, 4)
PLAIN(from_upper, do_from_upper, 2, 4)
PLAIN(zigzag_steps, do_zigzag, 2, 2)
PLAIN(unzigzag_steps, do_unzigzag, 2, 2)

#define AGAINST_BASE(name, loop, from, to)                                                                             \
    FUNCTION(name)                                                                                                     \
    {                                                                                                                  \
        EXACTLY(3)                                                                                                     \
        ARGS(from, 4, -(to))                                                                                           \
        WORK(loop(IN(0), IN(1), n, IN(2)))                                                                             \
        Py_RETURN_NONE;                                                                                                \
    }
AGAINST_BASE(difference, do_difference, 4, 4)
AGAINST_BASE(from_difference, do_from_difference, 4, 4)
AGAINST_BASE(short_difference, do_short_difference, 2, 2)
AGAINST_BASE(from_short_difference, do_from_short_difference, 2, 4)

#define SCALED(name, loop)                                                                                             \
    FUNCTION(name)                                                                                                     \
    {                                                                                                                  \
        float scale;                                                                                                   \
        NUMBERS(3, "f", &scale)                                                                                        \
        ARGS(4, 2, -4)                                                                                                 \
        WORK(loop(IN(0), IN(1), scale, n, IN(2)))                                                                      \
        Py_RETURN_NONE;                                                                                                \
    }
SCALED(add_halves, do_add_halves)
SCALED(add_steps, do_add_steps)

FUNCTION(split)
{
    int size;
    NUMBERS(2, "i", &size)
    if (size != 2 && size != 4)
        return PyErr_Format(PyExc_ValueError, "items of %d bytes, expected 2 or 4", size);
    ARGS(1, -1)
    if (n % size) {
        release(&buffers);
        return PyErr_Format(PyExc_ValueError, "%zd bytes are not items of %d", n, size);
    }
    if (size == 2)
        WORK(split2(IN(0), n / 2, IN(1)))
    else
        WORK(split4(IN(0), n / 4, IN(1)))
    Py_RETURN_NONE;
}

FUNCTION(join)
{
    if (PyTuple_Size(args) == 3) {
        ARGS(1, 1, -2)
        WORK(join2(IN(0), IN(1), n, IN(2)))
    } else {
        EXACTLY(5)
        ARGS(1, 1, 1, 1, -4)
        WORK(join4(IN(0), IN(1), IN(2), IN(3), n, IN(4)))
    }
    Py_RETURN_NONE;
}

FUNCTION(distances)
{
    int size;
    NUMBERS(2, "i", &size)
    if (size != 4 && size != 8)
        return PyErr_Format(PyExc_ValueError, "items of %d bytes, expected 4 or 8", size);
    Sums sums = {0};
    if (size == 4) {
        ARGS(4, 4)
        WORK(distances4(IN(0), IN(1), n, &sums))
    } else {
        ARGS(8, 8)
        WORK(distances8(IN(0), IN(1), n, &sums))
    }
    return Py_BuildValue("dddddd", sums.l1, sums.squares, sums.largest, sums.dot, sums.start, sums.end);
}

FUNCTION(peak)
{
    uint32_t found;
    if (PyTuple_Size(args) == 1) {
        ARGS(4)
        WORK(found = most(IN(0), n))
    } else {
        EXACTLY(2)
        ARGS(4, 4)
        WORK(found = most_between(IN(0), IN(1), n))
    }
    return PyFloat_FromDouble((double)float_of(found));
}

FUNCTION(to_halves)
{
    float inverse, scale;
    int back;
    NUMBERS(3, "ffp", &inverse, &scale, &back)
    ARGS(-4, 4, -2)
    WORK(do_to_halves(IN(0), IN(1), inverse, scale, back, n, IN(2)))
    Py_RETURN_NONE;
}

FUNCTION(fine_sums)
{
    float scale;
    uint64_t squares, count;
    NUMBERS(2, "f", &scale)
    ARGS(4, 4)
    WORK(do_fine_sums(IN(0), IN(1), scale, n, &squares, &count))
    return Py_BuildValue("KK", (unsigned long long)squares, (unsigned long long)count);
}

FUNCTION(to_steps)
{
    float inverse, scale;
    unsigned int threshold;
    int back;
    NUMBERS(3, "ffIp", &inverse, &scale, &threshold, &back)
    ARGS(-4, 4, -2)
    WORK(do_to_steps(IN(0), IN(1), inverse, scale, threshold, back, n, IN(2)))
    Py_RETURN_NONE;
}

FUNCTION(to_upper)
{
    unsigned int threshold;
    int dropped, keep, back;
    NUMBERS(2, "Iipp", &threshold, &dropped, &keep, &back)
    if (dropped < 16 || dropped > 31)
        return PyErr_Format(PyExc_ValueError, "%d bits to drop, expected 16 to 31", dropped);
    ARGS(-4, -2)
    WORK(do_to_upper(IN(0), threshold, dropped, (uint32_t)keep, back, n, IN(1)))
    Py_RETURN_NONE;
}

#define METHOD(name) {#name, name, METH_VARARGS, NULL}
static PyMethodDef methods[] = {
    METHOD(add_halves), METHOD(add_steps), METHOD(difference), METHOD(distances), METHOD(fine_sums),
    METHOD(from_difference), METHOD(from_rotated), METHOD(from_short_difference), METHOD(from_upper), METHOD(join),
    METHOD(peak), METHOD(rotate_left), METHOD(short_difference), METHOD(split), METHOD(to_halves), METHOD(to_steps),
    METHOD(to_upper), METHOD(unzigzag_steps), METHOD(zigzag_steps), {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module);
}
