"""Linear regression by gradient descent, the classic first case of a parameter server.

Ten samples lie on y = 1, x evenly spaced over [0, 1]; the loss is 1/2 sum (y - t0 - t1 x)^2; the rate is 0.01.
Every worker holds its share of the samples and pushes the gradient of its share; the servers add the gradients up.
However many workers there are, the figures are the same. Both of these work:

    python examples/linear_regression.py
    shoal run --workers 2 --servers 1 examples/linear_regression.py
"""

import torch

import shoal

RATE = 0.01
STEPS = 1500

with shoal.connect() as ps:
    x = torch.linspace(0, 1, 10)[ps.rank :: ps.workers]  # this worker's samples
    y = torch.ones_like(x)
    theta = torch.nn.Parameter(torch.zeros(2))
    opt = ps.optimizer([("theta", theta)], shoal.SGD(lr=RATE), sync=shoal.Sync(), reduction="sum")
    for step in range(1, STEPS + 1):
        before = theta.detach().clone()
        loss = 0.5 * (y - theta[0] - theta[1] * x).square().sum()
        loss.backward()
        opt.step()
        opt.zero_grad()
        if ps.rank == 0 and step in (1, 2, STEPS):
            gradient = (before - theta.detach()) / RATE  # of all ten samples: what the step was made of
            print(f"step {step}: gradient ({gradient[0]:.4f}, {gradient[1]:.4f})", end=", ")
            print(f"parameters ({theta[0]:.4f}, {theta[1]:.4f})", flush=True)
