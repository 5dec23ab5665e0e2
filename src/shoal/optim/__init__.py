"""Server-side update rules."""

from shoal.optim.adagrad import Adagrad
from shoal.optim.adam import Adam, AdamW
from shoal.optim.delayed import DelayedNesterov
from shoal.optim.lamb import LAMB
from shoal.optim.lion import Lion
from shoal.optim.rmsprop import RMSprop
from shoal.optim.rule import Rule
from shoal.optim.sgd import SGD, Nesterov

__all__ = ["LAMB", "SGD", "Adagrad", "Adam", "AdamW", "DelayedNesterov", "Lion", "Nesterov", "RMSprop", "Rule"]
