"""A page in headless Chromium, without a driver: a script is put behind the page, and what it finds is read back."""

import json
import os
import re
import shutil
import subprocess
import tempfile

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("background-networking", "component-update", "sync")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
NEEDED = bool(os.environ.get("FAITHLAB_NEEDS_BROWSER"))  # then its absence is a failure
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not NEEDED, reason="no Chromium: the system package `chromium` brings one"
)


def run(page, script, folder, fragment="", window="1200,900"):
    """What `script`, a function body, returns in the page (as JSON); errors of the page come back under "errors"."""
    assert CHROMIUM, "no Chromium, and FAITHLAB_NEEDS_BROWSER asks for one: install the system package `chromium`"
    behind = f"""<script>
    const found = (() => {{ {script} }})();
    const out = document.createElement("pre");
    out.id = "found"; out.textContent = JSON.stringify({{ found, errors: window.errors }});
    document.body.replaceChildren(out);
    </script>"""
    watch = "<script>window.errors = []; addEventListener('error', (e) => errors.push(e.message));"
    watch += "addEventListener('securitypolicyviolation', (e) => errors.push(e.blockedURI));</script>"
    path = folder / "tested.html"
    path.write_text(
        page.replace("<head>", "<head>" + watch, 1).replace("</body>", behind + "</body>"), encoding="utf-8"
    )
    with tempfile.TemporaryDirectory() as home:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={home}", f"--window-size={window}", "--dump-dom"]
        done = subprocess.run([*command, f"file://{path}{fragment}"], capture_output=True, text=True, timeout=120)
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text, done.stdout[-500:] + done.stderr[-500:]
    content = json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert content["errors"] == []
    return content["found"]
