"""The optimizers that the exchange is measured with.

Adam and AdamW divide the gradient's scale out, so that with the usual eps a sum would pass for a mean.
Here eps is a hundredth, about the size of the gradients, and a wrong scale shows at once.
"""

from __future__ import annotations

from shoal.optim import SGD, Adam, AdamW, Rule

EPS = 1e-2

RULES: dict[str, Rule] = {
    rule.name: rule for rule in (SGD(lr=0.1, momentum=0.9), Adam(eps=EPS), AdamW(eps=EPS, weight_decay=0.1))
}
