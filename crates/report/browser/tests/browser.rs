//! The page in a browser: it sorts, filters, tells values, prints, needs no network, and can be used by everybody.
//!
//! `.ci/browser` brings Chromium, its driver and axe-core, and runs these tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{DOT, predictions, record, write_history, write_run};
use serde_json::{Value, json};
use thirtyfour::LoggingPrefsLogLevel;
use thirtyfour::common::print::PrintParameters;
use thirtyfour::prelude::*;

/// Widths of a phone and of a desktop, in pixels.
const WIDTHS: [u32; 2] = [390, 1440];

/// chromedriver, ended with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("chromedriver starts (Debian: chromium-driver)");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_suffix('.')?.rsplit_once("on port ")?.1.parse().ok())
            .expect("chromedriver says its port");
        Self { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens a page, has it looked at, and ends the browser whatever was seen.
fn with_page(page: &Path, look: impl AsyncFnOnce(&WebDriver, &str)) {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut wishes = DesiredCapabilities::chrome();
        // Those that root and a container need.
        for flag in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] {
            wishes.add_arg(flag).unwrap();
        }
        wishes.set_logging_prefs("browser", LoggingPrefsLogLevel::All).unwrap();
        wishes.set_logging_prefs("performance", LoggingPrefsLogLevel::All).unwrap();
        let browser = WebDriver::new(format!("http://127.0.0.1:{}", server.port), wishes).await.unwrap();
        let address = format!("file://{}", fs::canonicalize(page).unwrap().display());
        browser.goto(address.as_str()).await.unwrap();
        look(&browser, &address).await;
        browser.quit().await.unwrap();
    });
}

async fn js(browser: &WebDriver, script: &str) -> Value {
    browser.execute(script, Vec::new()).await.unwrap().json().clone()
}

async fn click(browser: &WebDriver, css: &str) {
    browser.find(By::Css(css)).await.unwrap().click().await.unwrap();
}

async fn wide(browser: &WebDriver, width: u32) {
    let size = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
    browser.cdp().send_raw("Emulation.setDeviceMetricsOverride", size).await.unwrap();
}

/// What the system says: `light` or `dark`, on a screen or on paper.
async fn system(browser: &WebDriver, scheme: &str, media: &str) {
    let wishes = json!({ "media": media, "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
    browser.cdp().send_raw("Emulation.setEmulatedMedia", wishes).await.unwrap();
}

/// Names of the runs that the table shows, from above.
async fn shown(browser: &WebDriver) -> Value {
    js(
        browser,
        "return [...document.querySelectorAll('#table tbody tr:not([hidden]) th')].map(th => th.textContent)",
    )
    .await
}

/// Rules of axe-core that are broken, and where.
async fn violations(browser: &WebDriver) -> Value {
    let path =
        std::env::var_os("AXE_CORE").expect("AXE_CORE is the path of axe.min.js: .ci/browser fetches it");
    js(browser, &fs::read_to_string(path).unwrap()).await;
    let run = "const done = arguments[arguments.length - 1];
        axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] }).then(
            found => done(found.violations.map(v => v.id + ': ' + v.nodes.slice(0, 4).map(n => n.target.join(' ')).join(', '))),
            error => done([String(error)]));";
    browser.execute_async(run, Vec::new()).await.unwrap().json().clone()
}

/// Nothing was complained of, and nothing was asked of anybody.
async fn check_logs(browser: &WebDriver, address: &str) {
    let complaints = browser.get_log("browser").await.unwrap();
    assert!(complaints.is_empty(), "{complaints:?}");
    let mut requests = 0;
    for entry in browser.get_log("performance").await.unwrap() {
        let event: Value = serde_json::from_str(&entry.message).unwrap();
        if event["message"]["method"] == "Network.requestWillBeSent" {
            let url = event["message"]["params"]["request"]["url"].as_str().unwrap();
            assert!(url.starts_with(address) || url.starts_with("data:"), "{url}");
            requests += 1;
        }
    }
    assert!(requests > 0, "the page itself was asked for");
}

/// Whether broken rules are found at all.
async fn check_the_checker(browser: &WebDriver) {
    js(
        browser,
        "document.querySelector('#main').insertAdjacentHTML('beforeend', '<img id=nameless src=data:,>')",
    )
    .await;
    assert_eq!(violations(browser).await, json!(["image-alt: #nameless"]));
    js(browser, "document.querySelector('#nameless').remove()").await;
}

/// What holds of any page: it fits phone and desktop, breaks no rule, in light and in dark. Pictures of it are left where
/// REPORT_SCREENSHOTS says.
async fn check_looks(browser: &WebDriver, address: &str) {
    check_the_checker(browser).await;
    let run = js(browser, "return document.querySelector('#table tbody a').hash").await;
    for (part, place) in [("overview", "#overview"), ("run", run.as_str().unwrap())] {
        js(browser, &format!("location.hash = {}", json!(place))).await;
        for scheme in ["light", "dark"] {
            system(browser, scheme, "screen").await;
            for width in WIDTHS {
                wide(browser, width).await;
                let page = js(browser, "return document.documentElement.scrollWidth").await;
                assert!(page.as_u64().unwrap() <= u64::from(width), "{part} is {page} wide at {width}");
                assert_eq!(violations(browser).await, json!([]), "{part}, {scheme}, {width}");
                picture(browser, &format!("{part}-{scheme}-{width}.png"), width).await;
            }
        }
    }
    system(browser, "light", "screen").await;
    wide(browser, WIDTHS[1]).await;
    js(browser, "location.hash = '#overview'").await;
    check_logs(browser, address).await;
}

async fn picture(browser: &WebDriver, name: &str, width: u32) {
    let Some(directory) = std::env::var_os("REPORT_SCREENSHOTS").map(PathBuf::from) else { return };
    fs::create_dir_all(&directory).unwrap();
    let height = js(browser, "return document.documentElement.scrollHeight").await;
    let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
    browser.cdp().send_raw("Emulation.setDeviceMetricsOverride", size).await.unwrap();
    browser.screenshot(&directory.join(name)).await.unwrap();
}

/// Five networks, the better the earlier in the alphabet's reverse.
fn five(results: &Path) {
    let families = [
        ("a_cct", "cct"),
        ("b_gcvit", "gcvit"),
        ("c_patch", "patchconvnet"),
        ("d_vit", "vit"),
        ("e_mixer", "convmixer"),
    ];
    for (index, (model, family)) in families.into_iter().enumerate() {
        let wrong = 9 - 2 * index;
        let mut record = record(model, 0, (40 - wrong) as f64 / 40.0);
        record.result.family = family.into();
        record.result.params = 594_186 * (1 + wrong as u64);
        let dir = results.join("runs").join(format!("{model}--s0"));
        write_run(&dir, &record, &predictions(40, |image| image < wrong, "cat"));
        write_history(&dir);
        fs::create_dir_all(dir.join("figures")).unwrap();
        fs::write(dir.join("figures/mistakes.png"), DOT).unwrap();
    }
}

#[test]
#[ignore = "needs Chromium, its driver and axe-core: .ci/browser"]
fn the_page_works_in_a_browser() {
    let results = tempfile::tempdir().unwrap();
    five(results.path());
    let page = report::write(results.path()).unwrap().page;
    with_page(&page, async |browser, address| {
        wide(browser, WIDTHS[1]).await;
        sorts(browser).await;
        filters(browser).await;
        tells_values(browser).await;
        toggles_runs(browser).await;
        goes_to_a_run_and_back(browser).await;
        prints(browser).await;
        changes_its_colours(browser).await;
        check_looks(browser, address).await;
    });
}

async fn sorts(browser: &WebDriver) {
    let best_first = ["e_mixer--s0", "d_vit--s0", "c_patch--s0", "b_gcvit--s0", "a_cct--s0"];
    let worst_first: Vec<&str> = best_first.into_iter().rev().collect();
    assert_eq!(shown(browser).await, json!(best_first));
    let heads = "#table thead th";
    let order = async || {
        js(browser, "return [...document.querySelectorAll('#table thead th')].map(th => th.ariaSort)").await
    };
    // Parameters: most of the worst.
    click(browser, &format!("{heads}:nth-child(4) button")).await;
    assert_eq!(shown(browser).await, json!(worst_first));
    assert_eq!(order().await[3], "descending");
    click(browser, &format!("{heads}:nth-child(4) button")).await;
    assert_eq!(shown(browser).await, json!(best_first));
    assert_eq!((&order().await[3], &order().await[2]), (&json!("ascending"), &Value::Null));
    click(browser, &format!("{heads}:nth-child(3) button")).await;
}

async fn filters(browser: &WebDriver) {
    let field = browser.find(By::Id("filter")).await.unwrap();
    let said = async || browser.find(By::Id("shown")).await.unwrap().text().await.unwrap();
    field.send_keys("VIT complete").await.unwrap();
    assert_eq!(shown(browser).await, json!(["d_vit--s0", "b_gcvit--s0"]));
    assert_eq!(said().await, "2 of 5 runs");
    field.send_keys(" nothing").await.unwrap();
    assert_eq!((shown(browser).await, said().await), (json!([]), "0 of 5 runs".to_owned()));
    field.send_keys(Key::Control + "a").await.unwrap();
    field.send_keys(Key::Delete + "").await.unwrap();
    assert_eq!(said().await, "5 of 5 runs");
}

async fn tip(browser: &WebDriver) -> Value {
    js(browser, "const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent")
        .await
}

async fn tells_values(browser: &WebDriver) {
    // The first chart has a dot for each run.
    let dot = browser.find(By::Css(".chart g.series circle")).await.unwrap();
    dot.scroll_into_view().await.unwrap();
    browser.action_chain().move_to_element_center(&dot).perform().await.unwrap();
    assert_eq!(tip(browser).await, "e_mixer--s0: 1.19 M · 97.50 %");
    browser.action_chain().move_to(2, 2).perform().await.unwrap();
    assert_eq!(tip(browser).await, Value::Null);
    let chart = browser.find(By::Css(".chart")).await.unwrap();
    js(browser, "document.querySelector('.chart').focus()").await;
    chart.send_keys(Key::Right + "").await.unwrap();
    chart.send_keys(Key::Right + "").await.unwrap();
    assert_eq!(tip(browser).await, "d_vit--s0: 2.38 M · 92.50 %");
    chart.send_keys(Key::Left + "").await.unwrap();
    assert_eq!(tip(browser).await, "e_mixer--s0: 1.19 M · 97.50 %");
    chart.send_keys(Key::Escape + "").await.unwrap();
    assert_eq!(tip(browser).await, Value::Null);
}

async fn toggles_runs(browser: &WebDriver) {
    let visible = "return [...document.querySelectorAll('#overview g.series')]
        .filter(g => g.dataset.run === 'c_patch--s0' && getComputedStyle(g).display !== 'none').length";
    let all = js(browser, visible).await;
    assert_eq!(all, 5, "a dot in three charts, a line in two");
    let button = "#legend button[data-run='c_patch--s0']";
    click(browser, button).await;
    assert_eq!(js(browser, visible).await, 0);
    let pressed = browser.find(By::Css(button)).await.unwrap().attr("aria-pressed").await.unwrap();
    assert_eq!(pressed.as_deref(), Some("false"));
    click(browser, button).await;
    assert_eq!(js(browser, visible).await, all);
}

async fn goes_to_a_run_and_back(browser: &WebDriver) {
    let visible = "return [...document.querySelectorAll('#overview, article.run')]
        .filter(e => e.offsetParent !== null).map(e => e.dataset.run ?? e.id)";
    assert_eq!(js(browser, visible).await, json!(["overview"]));
    click(browser, "#table tbody a").await;
    assert_eq!(js(browser, visible).await, json!(["e_mixer--s0"]));
    browser.back().await.unwrap();
    assert_eq!(js(browser, visible).await, json!(["overview"]));
}

async fn prints(browser: &WebDriver) {
    let pdf = browser.print_page(PrintParameters::default()).await.unwrap();
    assert!(pdf.starts_with(b"%PDF") && pdf.len() > 20_000, "{} bytes", pdf.len());
    system(browser, "dark", "print").await;
    let seen =
        "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
        [...document.querySelectorAll('.control')].every(e => getComputedStyle(e).display === 'none')]";
    assert_eq!(js(browser, seen).await, json!(["rgb(255, 255, 255)", "rgb(0, 0, 0)", true]));
    system(browser, "light", "screen").await;
}

async fn changes_its_colours(browser: &WebDriver) {
    let paper = async || js(browser, "return getComputedStyle(document.body).backgroundColor").await;
    let (light, dark) = (json!("rgb(255, 255, 255)"), json!("rgb(22, 24, 27)"));
    assert_eq!(paper().await, light);
    click(browser, "#theme").await;
    assert_eq!(paper().await, dark);
    click(browser, "#theme").await;
    assert_eq!(paper().await, light);
    js(browser, "delete document.documentElement.dataset.theme").await;
    system(browser, "dark", "screen").await;
    assert_eq!(paper().await, dark);
    system(browser, "light", "screen").await;
}

#[test]
#[ignore = "needs Chromium, its driver and axe-core, and looks at the page that REPORT_PAGE names"]
fn a_given_page_keeps_the_rules() {
    let page = std::env::var_os("REPORT_PAGE").expect("REPORT_PAGE names a page");
    with_page(Path::new(&page), async |browser, address| check_looks(browser, address).await);
}
