import matplotlib.pyplot as plt
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labkit import results


@pytest.fixture
def display(monkeypatch):
    """Set or unset what tells whether Linux has a display."""

    def display(name):
        for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(variable, raising=False)
        if name:
            monkeypatch.setenv(name, "0")

    monkeypatch.setattr(results.sys, "platform", "linux")
    return display


def test_only_linux_can_be_without_a_display(display, monkeypatch):
    display(None)
    assert not results.has_display()
    display("WAYLAND_DISPLAY")
    assert results.has_display()
    display(None)
    monkeypatch.setattr(results.sys, "platform", "darwin")
    assert results.has_display()


def test_windows_open_where_the_backend_has_them_and_a_failure_is_a_warning(display, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    display("DISPLAY")
    results.show({"a": Figure(), "b": Figure()})  # Agg has no windows
    assert shown == [] and capsys.readouterr() == ("", "")

    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "tk")
    results.show({"a": Figure()})
    assert shown and "close the windows" in capsys.readouterr().out

    monkeypatch.setattr(plt, "figure", lambda *_, **__: 1 / 0)
    results.show({"a": Figure()})
    assert capsys.readouterr().err == "warning: no windows: division by zero\n"
    plt.close("all")
