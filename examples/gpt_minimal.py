"""A GPT that learns Python from the standard library's own source: Shoal's training loop, nothing else.

    shoal run --workers 2 --servers 2 examples/gpt_minimal.py          # or alone: python examples/gpt_minimal.py
    shoal run --workers 2 --servers 2 examples/gpt_minimal.py 2000     # iterations

`shoal train gpt` is this loop with evaluation, snapshots and a live view.
"""

import sys

import torch

import shoal
from shoal.recipes.gpt.crops import Crops
from shoal.recipes.gpt.model import GPT, Shape
from shoal.recipes.gpt.text import make_tokenizer, read_text

ITERATIONS = int(sys.argv[1]) if len(sys.argv) > 1 else 300
BLOCK_SIZE, BATCH_SIZE = 64, 12

text = read_text("")
tokenizer = make_tokenizer(text, "char", 0)
dataset = Crops(tokenizer.encode(text), BLOCK_SIZE, ITERATIONS * BATCH_SIZE, seed=1)
torch.manual_seed(1)
model = GPT(Shape(tokenizer.size, BLOCK_SIZE, n_layer=2, n_head=4, n_embd=64))

with shoal.connect() as ps:
    rule = shoal.AdamW(lr=3e-3, weight_decay=0.1, clip_norm=1.0)
    opt = ps.optimizer(model, rule, sync=shoal.Sync())
    losses = []
    for x, y in ps.loader(dataset, batch_size=BATCH_SIZE // ps.workers):
        loss = model(x, y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
        ps.report(loss=losses[-1])
        if ps.rank == 0 and len(losses) % 50 == 0:
            print(f"step {len(losses)}: loss {sum(losses[-50:]) / 50:.3f}", flush=True)
    if ps.rank == 0:
        start = torch.tensor([[tokenizer.start]])
        print(tokenizer.decode(model.generate(start, 200)[0].tolist()))
