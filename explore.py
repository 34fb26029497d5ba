"""A window on the bottleneck, opened by `python lab1.py -l model.pth --explore`: a slider a unit, and the digit they decode to.

Keys: right and left, another test image; up and down, another second image; r, back to the encoded values.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import Button, Slider

KEYS = "\u2190 \u2192 image    \u2191 \u2193 second image    r back to the encoded values"


class Explorer:
    """The window: `sliders`, one a unit; `mix`, from the image's code (0) to the second image's (1); `decoded`, the digit.

    `images` are float32 (N, 784) on the model's device, `labels` (N,), `first` and `second` the indices to begin with.
    """

    def __init__(self, model, images, labels, first=0, second=1):
        self.model, self.images, self.labels = model, images, labels
        self.codes = model.encode(images)
        self.outputs = model.decode(self.codes)
        self.errors = (self.outputs - images).square().mean(1)
        self.first, self.second = first, second
        units = self.codes.shape[1]
        self.figure = plt.figure("Explore the bottleneck", figsize=(11, 5.5), clear=True)
        self.pictures, self.captions = [], []
        for left, bottom in ((0.02, 0.52), (0.185, 0.52), (0.02, 0.06), (0.185, 0.06)):
            self.captions.append(self.figure.text(left, bottom + 0.35, "", fontsize=9))  # titles of axes draw slower
            axes = self.figure.add_axes([left, bottom, 0.15, 0.34])
            axes.axis("off")
            self.pictures.append(axes.imshow([[0.0] * 28] * 28, cmap="gray", vmin=0, vmax=1))
        self.decoded = self.pictures[3]
        self.figure.text(0.02, 0.96, KEYS, fontsize=9, color="dimgrey")
        columns = -(-units // 16)
        rows = -(-units // columns)
        tops = self.codes.amax(0).clamp(min=1).tolist()  # a dead unit can be pushed, too
        self.sliders = []
        for unit in range(units):
            column, row = divmod(unit, rows)
            left, width = 0.38 + column * 0.6 / columns, 0.5 / columns
            axes = self.figure.add_axes([left, 0.9 - (row + 1) * 0.78 / rows, width, 0.6 / rows])
            slider = Slider(axes, str(unit), 0, tops[unit], valfmt="%.1f")
            slider.drawon = False  # decode() draws: once a change, not twice
            slider.vline.set_visible(False)
            slider.valtext.set_visible(units <= 16)  # text takes longest to draw
            self.sliders.append(slider)
        self.mix = Slider(self.figure.add_axes([0.38, 0.04, 0.3, 0.04]), "mix", 0, 1, valfmt="%.2f")
        self.mix.drawon = False
        self.mix.vline.set_visible(False)
        self.back = Button(self.figure.add_axes([0.76, 0.03, 0.1, 0.06]), "back (r)")
        self.next = Button(self.figure.add_axes([0.88, 0.03, 0.1, 0.06]), "next (\u2192)")
        for slider in self.sliders:
            slider.on_changed(self.decode)
        self.mix.on_changed(self.interpolate)
        self.back.on_clicked(lambda _: self.reset())
        self.next.on_clicked(lambda _: self.choose(1, 0))
        if self.figure.canvas.manager:
            self.figure.canvas.mpl_disconnect(self.figure.canvas.manager.key_press_handler_id)  # r and arrows are ours
        self.figure.canvas.mpl_connect("key_press_event", self.press)
        self.choose(0, 0)

    def press(self, event):
        moves = {"right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}
        if event.key in moves:
            self.choose(*moves[event.key])
        elif event.key == "r":
            self.reset()

    def choose(self, step, second_step):
        """Go on by so many test images."""
        self.first, self.second = (self.first + step) % len(self.images), (self.second + second_step) % len(self.images)
        shown = ((self.images[self.first], f"image {self.first}: {self.labels[self.first]}"),
                 (self.outputs[self.first], f"output, MSE {self.errors[self.first]:.4f}"),
                 (self.images[self.second], f"second image {self.second}: {self.labels[self.second]}"),
                 (self.outputs[self.first], "decoded from the sliders"))
        for picture, caption, (image, text) in zip(self.pictures, self.captions, shown):
            picture.set_data(image.view(28, 28).numpy(force=True))
            caption.set_text(text)
        self.reset()

    def reset(self):
        """Set the sliders to the image's code."""
        self.set(self.mix, 0)
        self.interpolate(0)

    def interpolate(self, t):
        """Set the sliders to the code between the two images', linear in `t` from 0 to 1."""
        code = torch.lerp(self.codes[self.first], self.codes[self.second], t)
        for slider, value in zip(self.sliders, code.tolist()):
            self.set(slider, value)
        self.decode()

    @staticmethod
    def set(slider, value):
        """Move a slider without decoding: there may be 32 of them."""
        slider.eventson = False
        slider.set_val(value)
        slider.eventson = True

    @torch.no_grad()
    def decode(self, _=None):
        """Show the digit that the sliders decode to."""
        code = torch.tensor([slider.val for slider in self.sliders], dtype=torch.float32, device=self.images.device)
        self.decoded.set_data(self.model.decode(code).view(28, 28).numpy(force=True))
        self.figure.canvas.draw_idle()
