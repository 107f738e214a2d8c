"""From opening the viewer of a series to its first picture, and from one plane to the next; NiiVue beside it.

``python bench/viewer.py [--slices 300] [--rounds 5] [--niivue FOLDER]`` publishes a synthetic chest of 512 x 512
pixels in a root of its own, serves it on loopback and drives headless Chromium (``apt-get install chromium``). In turn:
the viewer with nothing read yet, the viewer once more, and, where FOLDER holds ``index.js`` of NiiVue (``npm pack
@niivue/niivue@0.69.0``, its ``dist``), NiiVue with the same file, under a content security policy that allows the
``data:`` pictures that it asks for; once also under the policy of our page. NiiVue needs WebGL2 and gets a browser that
has it in software; the viewer needs none: it runs in Chromium as it starts by itself, and again in NiiVue's browser.
Times are those of the browser, from the start of the navigation to the first canvas that holds the picture; medians are
compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import TimeoutError as NotInTime
from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

sys.path.insert(0, str(Path(__file__).parents[1]))
from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.web.shield import POLICY
from tests.published_root import SERIES, STUDY, PublishedRoot, listening

CHROMIUM = "/usr/bin/chromium"
PLAIN = ["--no-sandbox"]
# WebGL2 in software, as on a server's console.
WEBGL = [*PLAIN, "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
RELAXED = f"{POLICY}; worker-src 'self' blob:".replace("'self'", "'self' data: blob:")
PATIENCE_MS = 30_000
NIIVUE = """
import { Niivue } from '/dist/index.js';
const view = new Niivue({ show3Dcrosshair: false });
await view.attachTo('view');
await view.loadVolumes([{ url: '/ct.nii.gz' }]);
requestAnimationFrame(() => { document.body.dataset.firstPicture = performance.now().toFixed(1); });
"""
PAGE = '<!doctype html><body><canvas id="view"></canvas><script type="module" src="/start.js"></script></body>'


@contextmanager
def niivue(folder: Path, volume: Path, policy: str) -> Iterator[str]:
    """Serve NiiVue with one volume."""
    headers = {"content-security-policy": policy}
    app = Starlette(
        routes=[
            Route("/", lambda _: HTMLResponse(PAGE, headers=headers)),
            Route("/start.js", lambda _: PlainTextResponse(NIIVUE, media_type="text/javascript")),
            Route("/ct.nii.gz", lambda _: FileResponse(volume)),
            Mount("/dist", StaticFiles(directory=folder)),
        ]
    )
    with listening(app) as address:
        yield address


def first_picture_ms(browser: Browser, url: str, faults: set[str], patience_ms: int = PATIENCE_MS) -> float:
    """Return the milliseconds from navigation to the first picture, in a fresh context; infinite if none comes."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.on("console", lambda said: faults.add(said.text[:160]) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.add(str(error)[:160]))
    page.goto(url, wait_until="commit")
    try:
        page.wait_for_selector("body[data-first-picture]", timeout=patience_ms, state="attached")
        return float(page.evaluate("document.body.dataset.firstPicture"))
    except NotInTime:
        return math.inf
    finally:
        context.close()


def next_plane_ms(browser: Browser, url: str, count: int) -> list[float]:
    """Return the milliseconds from a key to the next plane with its lungs, ``count`` times."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(url)
    page.wait_for_selector('[data-plane="sagittal"][data-lungs="true"]')
    script = """async (count) => {
      const view = document.querySelector('[data-plane="axial"]'), canvas = view.querySelector('canvas'), times = [];
      for (let at = 0; at < count; at++) {
        const began = performance.now(), before = view.dataset.shown;
        canvas.dispatchEvent(new KeyboardEvent('keydown', { key: 'PageUp', bubbles: true }));
        while (view.dataset.shown === before) await new Promise(requestAnimationFrame);
        times.push(performance.now() - began);
      }
      return times;
    }"""
    times = page.evaluate(script, count)
    page.close()
    return [float(time) for time in times]


def published(place: Path, slices: int) -> PublishedRoot:
    """Return a root with one published chest."""
    voxels, _, grid = chest((slices, 512, 512), (300.0 / slices, 0.7, 0.7))
    (place / "sent").mkdir()
    files = write_series(place / "sent", voxels, grid, study_uid=STUDY, series_uid=SERIES)
    root = PublishedRoot(place / "node")
    root.bring(*files)
    root.process(1)
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--niivue", type=Path, help="folder with index.js of NiiVue")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as play:
        root = published(Path(place), options.slices)
        (volume,) = root.layout.results.rglob("ct.nii.gz")
        print(
            f"{options.slices} slices, ct.nii.gz {volume.stat().st_size / 1e6:.0f} MB, {options.rounds} rounds",
            flush=True,
        )
        browser = play.chromium.launch(executable_path=CHROMIUM, args=PLAIN)
        webgl = play.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
        for one in (browser, webgl):
            first_picture_ms(one, "data:text/html,<body data-first-picture='0'>", set())
        cold, warm, emulated, peer, faults = [], [], [], [], set[str]()
        for _ in range(options.rounds):
            # Each application starts with nothing read.
            with listening(root.app()) as address:
                url = f"{address}/viewer/{STUDY}/{SERIES}"
                cold.append(first_picture_ms(browser, url, set()))
                warm.append(first_picture_ms(browser, url, set()))
            with listening(root.app()) as address:
                emulated.append(first_picture_ms(webgl, f"{address}/viewer/{STUDY}/{SERIES}", set()))
            if options.niivue:
                with niivue(options.niivue, volume, RELAXED) as address:
                    peer.append(first_picture_ms(webgl, address, set()))
            times = " ".join(f"{one[-1]:5.0f}" for one in (cold, warm, emulated, peer) if one)
            print(f"  {times} ms", flush=True)
        strict = math.nan
        if options.niivue:
            with niivue(options.niivue, volume, POLICY) as address:
                strict = first_picture_ms(webgl, address, faults)
        with listening(root.app()) as address:
            steps = sorted(next_plane_ms(browser, f"{address}/viewer/{STUDY}/{SERIES}", 60))
        browser.close()
        webgl.close()
        root.close()
    told = {
        "viewer, first picture, nothing read yet": cold,
        "viewer, first picture, once more": warm,
        "viewer, nothing read yet, WebGL emulated": emulated,
    }
    for name, times in (told | ({"NiiVue, first picture": peer} if peer else {})).items():
        print(f"{name:42} median {statistics.median(times):7.0f} ms   {min(times):.0f} to {max(times):.0f} ms")
    middle, late = statistics.median(steps), steps[int(len(steps) * 0.95)]
    print(f"{'viewer, next axial plane':42} median {middle:7.0f} ms   p95 {late:.0f} ms")
    if peer:
        ratio = statistics.median(peer) / statistics.median(emulated)
        print(f"NiiVue takes {ratio:.1f} times as long in the same browser")
        print(f"NiiVue under the policy of our page: {'no picture' if math.isinf(strict) else f'{strict:.0f} ms'}")
    for fault in sorted(faults):
        print(f"  {fault}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
