package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// The kind of a timestamped cosignature key (C2SP tlog-cosignature), which sumdb does not know.
const cosignature = 0x04

type noteRequest struct {
	Note []byte
	Keys []string // verifier key lines, kinds 0x01 and 0x04
}

// noteAnswer lists the keys that have signed, in the order of the note, and the lines of the text.
type noteAnswer struct {
	Signers []string
	Times   []uint64 // of the cosignatures among them
	Lines   []string
	Error   string
}

type signRequest struct {
	Text          string
	Name          string
	Seed          []byte // of the Ed25519 key, 32 bytes
	CosignSeed    []byte // of the cosignature key, 32 bytes
	CosignatureAt uint64 // seconds since 1970
}

type signAnswer struct {
	Note  []byte
	Keys  []string
	Error string
}

// cosigner verifies and makes cosignatures, as a note.Verifier and a note.Signer.
type cosigner struct {
	name    string
	public  ed25519.PublicKey
	private ed25519.PrivateKey
	time    uint64 // to state when signing; what was stated, after verifying
}

func (key *cosigner) Name() string { return key.name }

func (key *cosigner) KeyHash() uint32 {
	digest := sha256.Sum256(append([]byte(key.name+"\n"), key.typed()...))
	return binary.BigEndian.Uint32(digest[:])
}

func (key *cosigner) typed() []byte { return append([]byte{cosignature}, key.public...) }

func (key *cosigner) line() string {
	return fmt.Sprintf("%s+%08x+%s", key.name, key.KeyHash(), base64.StdEncoding.EncodeToString(key.typed()))
}

func cosigned(text []byte, time uint64) []byte {
	return append([]byte(fmt.Sprintf("cosignature/v1\ntime %d\n", time)), text...)
}

func (key *cosigner) Verify(text, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	key.time = binary.BigEndian.Uint64(signature)
	return ed25519.Verify(key.public, cosigned(text, key.time), signature[8:])
}

func (key *cosigner) Sign(text []byte) ([]byte, error) {
	stamp := make([]byte, 8)
	binary.BigEndian.PutUint64(stamp, key.time)
	return append(stamp, ed25519.Sign(key.private, cosigned(text, key.time))...), nil
}

// verifier parses a verifier key line of either kind.
func verifier(line string) (note.Verifier, error) {
	parts := strings.SplitN(line, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("verifier key %q", line)
	}
	data, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, err
	}
	if len(data) != 1+ed25519.PublicKeySize || data[0] != cosignature {
		return note.NewVerifier(line)
	}
	key := &cosigner{name: parts[0], public: data[1:]}
	if key.line() != line {
		return nil, fmt.Errorf("key id of %q", line)
	}
	return key, nil
}

func checkNote(asked noteRequest) (found noteAnswer) {
	var keys []note.Verifier
	for _, line := range asked.Keys {
		key, err := verifier(line)
		if err != nil {
			found.Error = err.Error()
			return found
		}
		keys = append(keys, key)
	}
	opened, err := note.Open(asked.Note, note.VerifierList(keys...))
	if err != nil {
		found.Error = err.Error()
		return found
	}
	for _, signature := range opened.Sigs {
		found.Signers = append(found.Signers, fmt.Sprintf("%s+%08x", signature.Name, signature.Hash))
		for _, key := range keys {
			if known, ok := key.(*cosigner); ok && known.KeyHash() == signature.Hash {
				found.Times = append(found.Times, known.time)
			}
		}
	}
	found.Lines = strings.Split(strings.TrimSuffix(opened.Text, "\n"), "\n")
	return found
}

func signText(asked signRequest) (found signAnswer) {
	fail := func(err error) signAnswer { return signAnswer{Error: err.Error()} }
	if len(asked.Seed) != ed25519.SeedSize || len(asked.CosignSeed) != ed25519.SeedSize {
		return fail(fmt.Errorf("seeds of %d and %d bytes", len(asked.Seed), len(asked.CosignSeed)))
	}
	public := ed25519.NewKeyFromSeed(asked.Seed).Public().(ed25519.PublicKey)
	line, err := note.NewEd25519VerifierKey(asked.Name, public)
	if err != nil {
		return fail(err)
	}
	id := strings.SplitN(line, "+", 3)[1]
	secret := base64.StdEncoding.EncodeToString(append([]byte{0x01}, asked.Seed...))
	signer, err := note.NewSigner("PRIVATE+KEY+" + asked.Name + "+" + id + "+" + secret)
	if err != nil {
		return fail(err)
	}
	private := ed25519.NewKeyFromSeed(asked.CosignSeed)
	witness := &cosigner{asked.Name, private.Public().(ed25519.PublicKey), private, asked.CosignatureAt}
	signed, err := note.Sign(&note.Note{Text: asked.Text}, signer, witness)
	if err != nil {
		return fail(err)
	}
	return signAnswer{Note: signed, Keys: []string{line, witness.line()}}
}
