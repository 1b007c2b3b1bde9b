"""The 77 silent bugs of the study, as its replication package numbers them.

F. Tambon et al., *The case of silent bugs in TensorFlow/Keras*, ICSE 2023. Whether a callback can
catch them was judged when their failures were made again on Keras 3: `yes`, `partly` (a part is out
of reach: a GPU kernel, a loop of the user's own) or `no`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One issue of the study."""

    id: str
    issue: int  # of tensorflow/tensorflow
    impact: str  # "1" to "4", "n" where the study did not rate it
    title: str
    category: str
    catchable: str  # "yes", "partly" or "no"


FOUNDING = "founding case"

STUDY = (
    Bug("1", 32476, "2", "Dynamic layer's declared shape misread", "wrong shape", "yes"),
    Bug("2", 32320, "1", "evaluate progress bar pages long", "wrong displayed message", "partly"),
    Bug("3", 32144, "2", "Layer metrics swap their values", "wrong displayed message", "yes"),
    Bug("4", 42459, "4", "Accuracy lost after save and load", "wrong save/reload", "yes"),
    Bug("5", 41958, "4", "evaluate wrong after load, predict right", "wrong save/reload", "yes"),
    Bug("6", 41797, "3", "Model JSON contains Infinity", "wrong save/reload", "yes"),
    Bug("7", 38810, "1", "Profiler chatter between epochs", "wrong displayed message", "partly"),
    Bug("8", 34141, "2", "build called with no shape", "wrong shape", "partly"),
    Bug("9", 33929, "4", "clipvalue and clipnorm do nothing", "wrong calculation", "yes"),
    Bug("10", 40002, "3", "Compiled metrics ignore the mask", "wrong parameter setting", "yes"),
    Bug(
        "11",
        39635,
        "4",
        "Time-major Bidirectional reversed over the batch",
        "wrong parameter setting",
        "yes",
    ),
    Bug("12", 43230, "4", "GAN classifier at chance after reload", "wrong save/reload", "yes"),
    Bug("13", 42890, "4", "load_model wrong in 2.3 for logits", "wrong save/reload", "yes"),
    Bug("14", 42885, "4", "relu turns NaN into zero on GPU", "wrong calculation", "partly"),
    Bug(
        "15",
        42679,
        "1",
        "summary loses a layer with dict inputs",
        "wrong displayed message",
        "partly",
    ),
    Bug("16", 31458, "3", "Metric reset skipped in graph mode", "wrong parameter setting", "yes"),
    Bug("17", 31324, "3", "LR variable changes are ignored", "wrong parameter setting", "yes"),
    Bug("18", 38596, "2", "Short last batch weighs as a full one", "wrong calculation", "yes"),
    Bug("19", 38222, "1", "False graph-cycle errors printed", "wrong displayed message", "partly"),
    Bug(
        "20",
        27780,
        "n",
        "Depthwise conv slow in half precision",
        "performance degradation",
        "partly",
    ),
    Bug("21", 27649, "n", "strided_slice loses static shape", "wrong shape", "yes"),
    Bug("22", 27353, "3", "steps_per_epoch ignored for Sequence", "wrong parameter setting", "yes"),
    Bug("24", 27275, "3", "training is None inside Model.call", "wrong parameter setting", "yes"),
    Bug("25", 44178, "1", "Own deprecation warnings on save", "wrong displayed message", "partly"),
    Bug("26", 44092, "4", "Dilated conv loses static width", "wrong shape", "yes"),
    Bug("27", 43777, "4", "Trivial save and restore scores low", "wrong save/reload", "yes"),
    Bug(
        "29",
        45162,
        "3",
        "Training never starts with many map branches",
        "performance degradation",
        "yes",
    ),
    Bug(
        "30", 44736, "4", "Callback evaluate returns validation result", "wrong calculation", "yes"
    ),
    Bug("31", 44556, "n", "Second derivative of reduce_prod is NaN", "wrong calculation", "partly"),
    Bug(
        "32", 44501, "3", "Rotation augmentation adds black borders", "wrong calculation", "partly"
    ),
    Bug("33", 26319, "4", "training is None in subclass (1.13)", "wrong parameter setting", "yes"),
    Bug("34", 37887, "4", "Extra output steals the loss", "wrong calculation", "yes"),
    Bug("36", 37747, "4", "Class weights cast to int", "wrong calculation", "yes"),
    Bug("37", 37635, "3", "Layer class changes on reload", "wrong save/reload", "yes"),
    Bug("39", 37229, "3", "Adagrad default differs by spelling", "wrong parameter setting", "yes"),
    Bug("40", 46329, "3", "Frozen embedding thaws on reload", "wrong save/reload", "yes"),
    Bug(
        "41", 29558, "n", "Dataset not reshuffled between epochs", "wrong parameter setting", "yes"
    ),
    Bug("42", 28501, "4", "Embedding ignores its initial matrix", "wrong calculation", "partly"),
    Bug("43", 36694, "3", "Same loss, different gradient", "wrong calculation", "partly"),
    Bug(
        "45", 36400, "2", "Batch logs mix per-batch and running values", "wrong calculation", "yes"
    ),
    Bug("46", 33709, "4", "batch_dot wrong above rank 3", "wrong shape", "partly"),
    Bug("47", 40638, "4", "Weights vanish when layers are lifted", "wrong structure", "yes"),
    Bug("48", 31109, "3", "Dilated Conv2D shape not inferred", "wrong shape", "yes"),
    Bug("50", 30609, "1", "Spurious deprecation warnings", "wrong displayed message", "partly"),
    Bug("51", 30423, "4", "zero_output_for_mask not honoured", "wrong calculation", "yes"),
    Bug("52", 29881, "1", "Deprecated attribute warnings", "wrong displayed message", "partly"),
    Bug("53", 41028, "4", "LSTM differs for 'sigmoid' and sigmoid", "wrong calculation", "partly"),
    Bug("54", 40981, "3", "Model from same config differs", "wrong save/reload", "yes"),
    Bug("55", 33216, "1", "Step total shown as Unknown", "wrong displayed message", "yes"),
    Bug("56", 33177, "3", "fit_generator 3.5 times slower", "performance degradation", "partly"),
    Bug("57", 32869, "3", "Crossentropy does not use logits", "wrong calculation", "partly"),
    Bug(
        "58",
        32586,
        "4",
        "Stacked RNN cells miss the training flag",
        "wrong parameter setting",
        "yes",
    ),
    Bug("59", 32420, "3", "fit and evaluate leak memory", "performance degradation", "yes"),
    Bug("60", 32286, "1", "evaluate floods the console", "wrong displayed message", "partly"),
    Bug("61", 32268, "n", "Output node differs by execution mode", "wrong structure", "partly"),
    Bug("62", 39462, "3", "LR reduction repeats at min_lr", "wrong parameter setting", "yes"),
    Bug("63", 38938, "1", "Step count unknown and overshooting", "wrong displayed message", "yes"),
    Bug("64", 34732, "3", "Position embedding not connected", "wrong calculation", "yes"),
    Bug("65", 34619, "1", "Epoch header printed twice", "wrong displayed message", "partly"),
    Bug("66", 34055, "4", "reset_states dead for bidirectional", "wrong parameter setting", "yes"),
    Bug("67", 32089, "1", "evaluate bar too long", "wrong displayed message", "partly"),
    Bug("68", 38197, "n", "Not deterministic despite the flag", "wrong calculation", "partly"),
    Bug("69", 27455, "4", "relu in a model gives no gradient", "wrong calculation", "yes"),
    Bug("70", 43518, "4", "SavedModel scores differently", "wrong save/reload", "yes"),
    Bug(
        "71",
        20452,
        "3",
        "TimeDistributed wrong shape without batch size",
        "wrong parameter setting",
        "yes",
    ),
    Bug(
        "72", 36668, "2", "Layer and model metrics swapped (1.15)", "wrong parameter setting", "yes"
    ),
    Bug("73", 36340, "4", "Two equal GANs, one does not converge", "wrong calculation", "partly"),
    Bug("74", 33814, "2", "Profiler trace has cut-off names", "wrong displayed message", "no"),
    Bug(
        "75", 33503, "1", "Progress total taken from an attribute", "wrong displayed message", "yes"
    ),
    Bug("76", 40687, "3", "relu threshold ignores half precision", "wrong calculation", "yes"),
    Bug("77", 30964, "2", "Star import overwrites __name__", "wrong parameter setting", "no"),
    Bug("78", 35833, "4", "Estimator does not learn", "wrong calculation", "partly"),
    Bug("79", 30486, "2", "TimeDistributed(model) duplicates layers", "wrong structure", "yes"),
    Bug("80", 30040, "4", "BinaryCrossentropy accepts wrong ranks", "wrong calculation", "yes"),
    Bug(
        "81",
        29965,
        "4",
        "MSE differs by spelling with sample weights",
        "wrong parameter setting",
        "yes",
    ),
    Bug("82", 29856, "4", "Bilinear upsampling smears two edges", "wrong calculation", "partly"),
    Bug("83", 29824, "n", "reduce_max returns the exponent", "wrong calculation", "yes"),
)

# The cases that started this product.
FOUNDERS = (
    Bug("F1", 0, "4", "`x + y` destroys the mask", FOUNDING, "yes"),
    Bug("F2", 0, "4", "Mask made from the predictions", FOUNDING, "yes"),
    Bug("F3", 0, "4", "Targets shifted, mask not", FOUNDING, "yes"),
    Bug("F4", 0, "4", "Layer supports masks wrongly", FOUNDING, "yes"),
    Bug("F5", 0, "4", "Embedding with too few rows under XLA", FOUNDING, "yes"),
)

# What no case of the study or founder makes again; most of it the installed Keras does by itself.
FOUND = "found since"
SINCE = (
    Bug("L1", 0, "4", "Attention takes the mask off its input", FOUND, "yes"),
    Bug("L2", 0, "4", "optimizer.lr = 0 is ignored", FOUND, "yes"),
    Bug("L3", 0, "1", "The optimizer counts a step that never ran", FOUND, "yes"),
    Bug("L4", 0, "2", "A masked loss depends on the batch size", FOUND, "yes"),
    Bug("L5", 0, "n", "A seeded fit repeats its order", FOUND, "yes"),
    Bug("L6", 0, "4", "Frequent rows of an embedding learn too fast", FOUND, "yes"),
    Bug("L7", 0, "4", "Centred RMSprop makes NaN of an embedding", FOUND, "yes"),
    Bug("L8", 0, "3", "Clipping misses repeated rows of an embedding", FOUND, "yes"),
    Bug("L9", 0, "4", "Adam never moves weights in bfloat16", FOUND, "yes"),
    Bug("L10", 0, "1", "CategoryEncoding ignores half precision", FOUND, "yes"),
    Bug("L11", 0, "4", "Binary crossentropy trains past a softmax", FOUND, "yes"),
    Bug("L12", 0, "4", "Weights under a Dice loss part no samples", FOUND, "yes"),
    Bug("L13", 0, "3", "An F1 written as a function is averaged over batches", FOUND, "yes"),
)

BUGS = {bug.id: bug for bug in (*STUDY, *FOUNDERS, *SINCE)}

# Bugs of the study without a case, and why.
UNREACHED = {
    "20": "Which time would be right is not known: half precision on a CPU is slow by nature, and "
    "the slow kernel was a GPU's.",
    "74": "The profiler's traces are not seen by a callback.",
    "77": "It happens before training, outside of the model.",
}
