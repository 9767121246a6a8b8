"""A small GPT that learns to continue Python source, byte by byte; about 5 million parameters unless told otherwise.

polstore record examples/gpt.py --store runs --run gpt --every 50 --steps 1000
polstore record examples/gpt.py --store runs --run gpt-small --every 10 --steps 30 --config layers=2 --config width=128

It reads the standard library of the Python that runs it, or the .py, .txt and .md files below the directory in the
environment variable GPT_TEXT. Whoever verifies needs the same text, so the same release of Python; polverify says so
where it differs.
"""

import math
import os
import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import polstore

BYTES = 256  # tokens: one for each value of a byte
SUFFIXES = (".md", ".py", ".txt")
INSTALLED = ("dist-packages", "site-packages", "__pycache__")  # in the standard library's directory, but none of it
WEIGHT_DECAY = 0.1
CLIP = 1.0  # largest norm of the gradient


def build(
    device,
    *,
    layers=4,
    width=320,
    heads=5,
    context=128,
    dropout=0.1,
    tied=False,
    batch_size=16,
    lr=3e-4,
    warmup=100,
    total_steps=10_000,
    megabytes=2.0,
):
    model = GPT(layers, width, heads, context, dropout, tied).to(device)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: schedule(done, warmup, total_steps))
    windows = read_text(int(megabytes * 1e6)).unfold(0, context + 1, context)
    loader = DataLoader(TensorDataset(windows), batch_size=batch_size, shuffle=True, drop_last=True)
    return polstore.Training(model, optimizer, loader, extras={"scheduler": scheduler}, context=device)


def step(training, batches):
    (windows,) = next(batches)
    tokens = windows.to(training.context).long()
    logits = training.model(tokens[:, :-1])
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    training.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(training.model.parameters(), CLIP)
    training.optimizer.step()
    training.extras["scheduler"].step()
    return loss


def schedule(done, warmup, total_steps):
    """Return the share of the learning rate after `done` steps: a straight rise, then half a cosine down to a tenth."""
    if done < warmup:
        return (done + 1) / warmup
    progress = min(1.0, (done - warmup) / max(1, total_steps - warmup))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


class Block(nn.Module):
    """Attention and a feed-forward network, each on the normalised sum of what came before."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.attention(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        x = x + self.drop(self.projection(y.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.contract(functional.gelu(self.expand(self.norm2(x)))))

    def drop(self, x):
        return functional.dropout(x, self.dropout, self.training)


class GPT(nn.Module):
    def __init__(self, layers, width, heads, context, dropout, tied):
        super().__init__()
        self.dropout = dropout
        self.tokens = nn.Embedding(BYTES, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                last = name.endswith(("projection.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def read_text(size):
    """Return up to `size` bytes of text as a 1-D uint8 tensor: the files in the order of their names, joined."""
    directory = Path(os.environ.get("GPT_TEXT") or sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).as_posix()):
        parts = path.relative_to(directory).parts
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink() and not set(parts) & set(INSTALLED):
            text += path.read_bytes()
            if len(text) >= size:
                break
    if not text:
        raise FileNotFoundError(
            f"no {', '.join(SUFFIXES)} file below {directory}; name a directory of text in the environment variable "
            "GPT_TEXT"
        )
    return torch.frombuffer(text[:size], dtype=torch.uint8)
