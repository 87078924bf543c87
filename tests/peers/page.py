"""Tests TensorBoard's page in Chromium while TensorBoard reads the host over gRPC.

For a live run, the two tabs with curves must draw the training loss. The curve must pass through the points that
the run printed, and must be longer after a refresh. The page must list the run and its settings. Then a second run
is trained, and both runs must be drawn from one `host serve`. Saves a screenshot of each page.
Usage: page.py HOST FOLDER CHROMIUM CHROMEDRIVER
"""

import contextlib
import io
import os
import pathlib
import sys
import tempfile

from board import curve, printed, tensorboard
from PIL import Image, ImageColor
from program import fail, live_address, running, serving, wait_for
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from training import training

TAG = "loss/train"
FEWEST = 20  # a line needs more points than this to count as a curve
RATES = {"first": 2e-3, "second": 2e-4}  # the runs and their learning rates
# Without GPU interfaces, the Time Series tab draws SVG, as the Scalars tab always does.
OPTIONS = [
    "--headless",
    "--disable-gpu",
    "--disable-3d-apis",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1400,1000",
] + ["--no-sandbox"] * (os.geteuid() == 0)
# Selectors for each tab, in this order: a card, its title, the curves of the measured (not smoothed) values, the labels
# of the x axis, the labels of the y axis.
CHARTS = {
    "scalars": (
        "tf-scalar-card",
        ".name",
        ".line-plot.ghost path",
        ".x-axis .tick-label",
        ".y-axis .tick-label",
    ),
    "timeseries": (
        "scalar-card",
        ".tag",
        '.series-view path[style*="opacity: 0.25"]',
        "[axis=x] text",
        "[axis=y] text",
    ),
}
RUNS = {"scalars": ".item-label-container", "timeseries": "[data-id] .table-column-run"}
# Parts of the page are in shadow roots, which selectors of the document do not reach.
ALL = """const all = (what, root = document) => [...root.querySelectorAll(what),
    ...[root, ...root.querySelectorAll("*")].flatMap(one => one.shadowRoot ? all(what, one.shadowRoot) : [])];
const text = one => one.textContent.trim().replace(/\\s+/g, " ");
"""
READ_CHART = (
    ALL
    + """const [tag, card, title, curves, x, y] = arguments;
const chart = all(card).find(one => all(title, one).some(name => text(name).replaceAll(" ", "") == tag));
if (!chart) return null;
const number = label => Number(text(label.firstChild).replace("−", "-").replaceAll(",", "").replace(/k$/, "e3"));
const axis = (labels, at) => all(labels, chart).map(label => [Number(label.getAttribute(at)), number(label)]);
return {chart, x: axis(x, "x"), y: axis(y, "y"), curves: all(curves, chart).map(path => ({
    color: getComputedStyle(path).stroke,
    points: (path.getAttribute("d") ?? "").split(/[ML]/).slice(1).map(point => point.split(",").map(Number))}))};"""
)
READ_RUNS = ALL + """return all(arguments[0]).map(text)"""
READ_COLUMN = (
    ALL
    + """const cells = all("vaadin-grid-cell-content").map(cell => [text(cell), cell.getBoundingClientRect()]);
const head = cells.find(([name]) => name == arguments[0])?.[1];
return cells.filter(([_, place]) => head && place.width && place.left == head.left && place.top > head.top)
    .map(([value]) => Number(value));"""
)

host, folder, chromium, driver = sys.argv[1], *map(pathlib.Path, sys.argv[2:])


@contextlib.contextmanager
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    with tempfile.TemporaryDirectory() as profile:
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        chrome = webdriver.Chrome(options=options, service=Service(str(driver)))
        try:
            yield chrome
        finally:
            chrome.quit()


def scale(labels):
    """Returns a function that converts screen positions to values, based on the first and the last label of
    an axis."""
    (low, first), (high, last) = labels[0], labels[-1]
    return lambda place: first + (place - low) * (last - first) / (high - low)


def drawn(chrome, tab):
    """Returns the curves in the card of the loss, and the card itself. The curves are a dictionary from a color to
    points (step, value). Returns None until the chart is drawn."""
    chart = chrome.execute_script(READ_CHART, TAG, *CHARTS[tab])
    if not chart or min(len(chart["x"]), len(chart["y"])) < 2:
        return None
    step, value = scale(chart["x"]), scale(chart["y"])
    curves = {line["color"]: [(step(x), value(y)) for x, y in line["points"]] for line in chart["curves"]}
    return {color: points for color, points in curves.items() if len(points) > FEWEST}, chart["chart"]


def curves_on(chrome, tab, count, beyond=0):
    """Waits until the tab shows `count` curves, and each extends beyond the step `beyond`. Returns the curves and their
    card."""

    def enough():
        found = drawn(chrome, tab)
        return (
            found
            and len(found[0]) == count
            and min(line[-1][0] for line in found[0].values()) > beyond
            and found
        )

    return wait_for(f"{count} curves of {TAG} beyond step {beyond} in {tab}", enough, 60)


def run_of(tab, line):
    """Returns the run whose printed points match a curve."""
    for run, log in logs.items():
        ours = {step: value for (step, _), value in printed(log).get(TAG, {}).items()} if log.exists() else {}
        near = max(ours.values(), default=0) / 1000
        if all(abs(ours.get(round(step), float("inf")) - value) < near for step, value in line):
            return run
    fail(f"{tab} draws a curve of {TAG} that matches no run; its last point is {line[-1]}")


def check_color(tab, card, color):
    """Checks that the curve is visible: the number of pixels of its color must be at least half the card's width."""
    picture = Image.open(io.BytesIO(card.screenshot_as_png)).convert("RGB")
    ink = sum(count for count, pixel in picture.getcolors(1 << 24) if pixel == ImageColor.getrgb(color))
    if ink < picture.width / 2:
        fail(
            f"{tab} has only {ink} pixels of the color {color} in a card of {picture.width} by {picture.height}"
        )


def open_tab(chrome, page, tab):
    """Opens a tab. TensorBoard draws only visible cards, so a filter selects the cards of the losses."""
    chrome.get("about:blank")
    chrome.get(f"http://{page}/?tagFilter=loss%2F#{tab}&tagFilter=loss%2F")


def keep(chrome, name):
    chrome.save_screenshot(str(folder / f"{name}.png"))
    print(f"picture: {folder / name}.png")


def check_runs(chrome, tab, runs):
    """Checks that the page lists these runs."""
    listed = wait_for("the list of runs", lambda: chrome.execute_script(READ_RUNS, RUNS[tab]), 60)
    if sorted(listed) != sorted(runs):
        fail(f"{tab} lists the runs {listed}, not {sorted(runs)}")


def check_settings(chrome, page, runs):
    """Checks that the page shows the runs' settings and results with the default columns."""
    open_tab(chrome, page, "hparams")
    rates = wait_for("the settings", lambda: chrome.execute_script(READ_COLUMN, "learning_rate"), 60)
    if sorted(rates) != sorted(RATES[run] for run in runs):
        fail(f"hparams shows the learning rates {rates} for {runs}")
    losses = wait_for("the losses", lambda: chrome.execute_script(READ_COLUMN, TAG), 60)
    if len(losses) != len(runs) or not all(0 < loss < 10 for loss in losses):
        fail(f"hparams shows the losses {losses} for {runs}")


def train(name, steps):
    return training(
        host, folder / "runs", name, steps, "--learning-rate", RATES[name], "--lr-scheduler-type", "constant"
    )


folder.mkdir(parents=True, exist_ok=True)
logs = {run: folder / f"{run}.log" for run in RATES}
with browser() as chrome:
    with (
        running(train("first", 1_000_000), logs["first"]),
        tensorboard(live_address(folder / "runs", "first"), folder / "tensorboard.log") as page,
    ):
        for tab in CHARTS:
            wait_for("a curve", lambda: len(curve(page, TAG, "first")) > 2 * FEWEST)
            open_tab(chrome, page, tab)
            seen, _ = curves_on(chrome, tab, 1)
            (before,) = (line[-1][0] for line in seen.values())
            wait_for("growth", lambda: curve(page, TAG, "first")[-1][1] > before + 10)
            chrome.find_element("css selector", "button:has(.refresh-icon)").click()
            seen, card = curves_on(chrome, tab, 1, beyond=before + 0.5)
            ((color, line),) = seen.items()
            check_color(tab, card, color)
            check_runs(chrome, tab, ["first"])
            keep(chrome, f"live-{tab}")
            run_of(tab, line)
            print(
                f"live: {tab} drew {TAG} up to step {before:.0f}, and after a refresh up to step {line[-1][0]:.0f}"
            )
        check_settings(chrome, page, ["first"])
        keep(chrome, "live-hparams")
    with running(train("second", 300), logs["second"]) as process:
        if process.wait() != 0:
            fail(f"the second run ended with {process.returncode}: {logs['second'].read_text()[-2000:]}")
    with (
        serving(host, folder / "runs", folder / "serve.log") as grpc,
        tensorboard(grpc, folder / "tensorboard.log") as page,
    ):
        for tab in CHARTS:
            open_tab(chrome, page, tab)
            seen, card = curves_on(chrome, tab, len(RATES))
            for color in seen:
                check_color(tab, card, color)
            check_runs(chrome, tab, RATES)
            keep(chrome, f"both-{tab}")
            if {run_of(tab, line) for line in seen.values()} != set(RATES):
                fail(f"{tab} draws the same run twice")
        check_settings(chrome, page, RATES)
        keep(chrome, "both-hparams")
print(f"finished: the page draws {TAG} of both runs")
