"""A headless Chromium with a page in it, the network off, for tests of the report."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
DRAWN = (
    "[...document.querySelectorAll('section:not([hidden]) figure')].every(box => !box.figure || box.hidden || box.dataset.drawn === 'yes')"
)


class Page:
    """One tab: opens pages, waits for what they say, points and types."""

    def __init__(self, driver: Any):
        self.driver = driver

    def js(self, code: str, *given: Any) -> Any:
        """The value of an expression in the page."""
        return self.driver.execute_script(f"return {code}", *given)

    def wait(self, condition: str, seconds: float = 60.0) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.js(condition):
            assert time.monotonic() < end, f"not true within {seconds} s: {condition}"
            time.sleep(0.03)

    def open(self, address: str | Path, fragment: str = "") -> None:
        """Opens an address, or a file from disk, at a view, and waits until its figures are drawn."""
        where = address.resolve().as_uri() if isinstance(address, Path) else address
        self.driver.get("about:blank")
        self.driver.get(f"{where}#{fragment}")
        self.wait(f"typeof LL === 'object' && {DRAWN}")
        if self.js("document.querySelector('#text:not([hidden])') !== null"):
            self.wait("document.getElementById('text').dataset.drawn && document.getElementById('box-pins').dataset.drawn === 'yes'")

    def size(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def point(self, selector: str) -> None:
        """Moves the pointer onto an element."""
        from selenium.webdriver import ActionChains

        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver, duration=20).move_to_element(element).perform()

    def keys(self, *keys: str) -> None:
        """Types, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=20).send_keys(*keys).perform()

    def choose(self, label: str, option: str) -> None:
        """Chooses an option of the list with this label."""
        from selenium.webdriver.support.ui import Select

        picks = self.driver.find_elements("css selector", "section:not([hidden]) label.pick")
        pick = next(pick for pick in picks if pick.text.startswith(label))
        Select(pick.find_element("css selector", "select")).select_by_visible_text(option)

    def messages(self) -> list[str]:
        """What the console has said since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address that was asked for since the last call, but for what lies in the page itself."""
        sent = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [message["params"]["request"]["url"] for message in sent if message["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:", "about:"))]

    def picture(self, file: Path) -> None:
        """Saves the whole page as a PNG."""
        box = self.js("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": box[0], "height": min(box[1], 8000), "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(downloads: Path) -> Iterator[Page]:
    """A browser that reaches no network, and saves files to `downloads`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    flags = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1440,900", "disable-background-networking")
    for flag in (*flags, "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield Page(driver)
    finally:
        driver.quit()
