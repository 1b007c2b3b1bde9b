"""Ways to train, each a real fit whose evidence is compared with a calculation by hand.

One file holds one group of cells; `CELLS` of each is found by walking the folder. A cell is trained
twice, with the callback and without, and everything that training leaves must be the same.
"""
