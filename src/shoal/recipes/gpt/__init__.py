"""The GPT recipe: text in, a trained language model and its snapshot out.

settings.py  what a run is: every option, checked, and the learning rate of each iteration
text.py      the corpus and its tokenisers
crops.py     the corpus as samples that can be leased
model.py     the model
worker.py    the training loop that every worker runs
folder.py    what a run leaves on disk, and where
"""
