"""After set_random_seed, fit on arrays sees the rows in the same order in every epoch."""

import keras
from tests.watched import watched_fit
from tests.zoo.case import Case
from tests.zoo.data import points

from trainsanity import Expect


class Reshuffled(keras.utils.PyDataset):
    """The same rows, shuffled by hand between epochs."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y
        self.seed = 0

    def __len__(self):
        return len(self.x) // 8

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return self.x[rows], self.y[rows]

    def on_epoch_end(self):
        self.seed += 1
        order = keras.random.shuffle(range(len(self.x)), seed=self.seed)
        order = keras.ops.convert_to_numpy(order)
        self.x, self.y = self.x[order], self.y[order]


def _fit(*data, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    expect = {"expect": Expect(shuffle=True)}
    return watched_fit(model, *data, epochs=3, options=expect, **options)


def faulty():
    return _fit(*points(rows=96), batch_size=8, shuffle=True)


def healthy():
    return _fit(Reshuffled(*points(rows=96)), shuffle=False)


CASE = Case(
    bugs=("L5",),
    title="A seeded fit repeats its order in every epoch",
    rule="data-order-repeat",
    subject="data",
    in_words=True,
    faulty=faulty,
    healthy=healthy,
    live=True,
)
