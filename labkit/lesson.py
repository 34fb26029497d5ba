"""What the page says: the lesson and the experiments, in the words of the data set."""

from typing import NamedTuple


class Words(NamedTuple):
    """How to speak of a data set, and which of its labels make good examples."""

    title: str
    a: str  # an image of it
    names: tuple  # of the labels 0 to 9
    pair: tuple = (0, 1)  # two labels that resemble each other
    twins: tuple = (2, "two of class 2")  # a label, and how two images of it are called
    thin: tuple = (1, "an image of class 1")  # a label of few pixels, and how an image of it is called
    rich: int = 3  # a label whose images differ
    credit: str = ""


DIGITS = Words(
    "MNIST", "a digit", tuple("0123456789"), pair=(4, 9), twins=(7, "two 7s"), thin=(1, "a 1"), rich=2,
    credit="Images: MNIST, by Y. LeCun, C. Cortes and C. J. C. Burges.")
WORDS = {
    "mnist": DIGITS,
    "glyphs": DIGITS._replace(title="glyphs", credit="Images: digits of fonts, warped at random."),
    "fashion-mnist": Words(
        "Fashion-MNIST", "a garment",
        ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
        pair=(7, 9), twins=(8, "two bags"), thin=(1, "trousers"), rich=6,
        credit="Images: Fashion-MNIST, by Zalando Research, MIT License."),
    "kmnist": Words(
        "KMNIST", "a character", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        pair=(1, 7), twins=(0, "two “o”"), thin=(5, "a “ha”"), rich=2,
        credit="Images: KMNIST, by the Center for Open Data in the Humanities, CC BY-SA 4.0."),
}
LETTER = "drawing:1s703w105w70-2l4s524s"  # an A, as the page writes drawings


def words(dataset):
    """Return the Words of a data set; those of an unknown one say "image" and "class"."""
    return WORDS.get(dataset) or Words(dataset, "an image", tuple(f"class {label}" for label in range(10)))


def amount(number, thing):
    return f"{number:,} {thing}" + "s" * (number != 1)


def texts(words, data):
    """Return the texts of the page by the id of their element; `data` is what page.py puts into the page."""
    units = len(data["high"])
    numbers, images = amount(units, "number"), amount(data["testImages"], "test image")
    dead = data["high"].count(0)
    plane = (f"The plane through the code along the first two principal components, "
             f"{data['map']['variance']:.0%} of the variance.")
    axes = {1: "Across: the number; one row of dots per label.", 2: "Across: unit 0; up: unit 1."}
    return {
        "title": f"{words.a.capitalize()} in {numbers}",
        "lesson": f"An autoencoder squeezes an image through few numbers, 784 pixels → 392 → {numbers} → 392 "
                  f"→ 784 pixels, and learns to give it back. {trained(data['record'])} On {images} of "
                  f"{words.title} its mean squared error (MSE) is {data['mse']:.4f}; PCA, the best linear "
                  f"code, has {data['pcaErrors'][units]:.4f} with as many numbers and needs "
                  f"{components_needed(data)} to do as well.",
        "map-hint": f"{axes.get(units, plane)} Dots are test images; behind them is what the decoder paints "
                    "there. Move over it, drag, or tap a dot. Ring: the code; dashed: the image held.",
        "input-hint": f"Random: one of the {len(data['index'])} here. Worst: the largest MSE of all "
                      f"{data['testImages']:,}, then the next. Drawings are scaled and centred as MNIST’s "
                      "digits were.",
        "code-hint": f"The {numbers}, over the range on the test images; the mark is the encoded value. "
                     "Percent: importance, the share of the error that fixing a unit at its mean would add."
                     + f" Dead: 0 for every test image, {dead} of {units}." * (dead > 0),
        "more-summary": f"The other {units - 10} of {units}",
        "keys-thing": words.a.split()[1],
        "about": f"Data set: {data['dataset']}, {images}, {len(data['index'])} of them here. Weights: "
                 f"{data['weights']}, rounded to 8 bits for this page: their MSE is "
                 f"{data['roundedMse']:.5f}, that of the network itself {data['mse']:.5f}. {words.credit}",
    }


def trained(record):
    """Return a sentence on how the weights came about, by the `record` that they have, or None."""
    if record is None:
        return "How this one was trained is not recorded."
    noise = record["settings"].get("noise", 0)
    how = f"to remove noise of {noise}" if noise else "without noise"
    dataset = words(record["dataset"]).title
    return f"This one was trained on {dataset} for {amount(record['epochs'], 'epoch')}, {how}."


def components_needed(data):
    """Return the number of components with which PCA does as well as the network."""
    return next((k for k, error in enumerate(data["pcaErrors"]) if error <= data["mse"]), 784)


def experiments(words, data, codes):
    """Return a list of experiments: a question, the address that shows it, and what to do there.

    `codes` are those of the images in the page, (images, units). An experiment whose label is absent is left
    out.
    """
    (a, b), (twin, twins), (thin, a_thin) = words.pair, words.twins, words.thin
    rich = words.rich if words.rich in data["labels"] else data["labels"][0]
    best = max(range(len(data["high"])), key=data["importance"].__getitem__)
    code = codes[data["labels"].index(rich)].tolist()
    code[best] = data["high"][best]
    code = ",".join(f"{value:.5g}" for value in code)
    enough = min(max(components_needed(data), 1), data["pca"]["count"])
    choices = [
        ({a, b}, f"Where does {words.names[a]} become {words.names[b]}?",
         f"from=class{a}&input=class{b}&mix=0.5",
         "Move the slider of the interpolation, or press Play: is it ever neither?"),
        ({twin}, f"What lies between {twins}?", f"from=class{twin}&input=class{twin}.2&mix=0.5",
         "The input mixes the pixels, the output the codes: which of them is still one image?"),
        ({thin}, f"What does noise do to {a_thin}?", f"input=class{thin}&noise=0.4",
         "Raise the noise: when does something else come out? What does PCA make of it?"),
        ((), f"And a letter, which is not {words.a}?", f"input={LETTER}",
         "The decoder paints only what it has learned. Press Draw and try a face, or your initials."),
        ((), "Which image is the worst?", "input=worst",
         "Press Worst for the next one: what do they have in common?"),
        ((), "What does one number do?", f"input=class{rich}&code={code}",
         f"Unit {best}, the most important, is at its end. Move it to the other: what changes, what stays?"),
        ({a}, "Why not something linear?", f"input=class{a}&components={enough}",
         "Move the slider of PCA: with how many numbers is its picture as good as the output?"),
    ]
    return [choice for needed, *choice in choices if set(needed) <= set(data["labels"])]
