//! Pages as people see them, in Chromium: on a desktop and on a phone, light and dark, by keyboard,
//! and by the rules of accessibility of axe.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use common::browser::{Browser, Screen, free_port};
use common::{Shop, Visitor};
use fantoccini::Locator;
use fantoccini::key::Key;

/// Returns what is wrong with the page in view: parts that do not fit, and targets that a finger
/// misses (WCAG 2.2, 2.5.8).
const FITS: &str = r"
    const odd = [];
    const root = document.documentElement;
    if (root.scrollWidth > root.clientWidth) odd.push(`${root.scrollWidth} px wide`);
    for (const e of document.querySelectorAll('pre, td, .narrow, .product > div'))
        if (e.scrollWidth > e.clientWidth + 1) odd.push(`cut off: ${e.outerHTML}`);
    const targets = 'button, input:not([type=hidden]), nav a, .shelves a';
    for (const e of document.querySelectorAll(targets)) {
        const { width, height } = e.getBoundingClientRect();
        if (!e.hidden && (width < 24 || height < 24))
            odd.push(`${width} × ${height}: ${e.outerHTML}`);
    }
    return odd.join('\n');
";

const AXE: &str = "
    const done = arguments[0];
    const rules = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
    axe.run({ runOnly: rules }).then(
        ({ violations }) => done(violations.map(v => `${v.id}: ${v.nodes[0].html}`).join('\\n')),
        error => done(String(error)));
";

/// Returns the source of axe, which is installed at the first use.
fn axe() -> Result<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/axe");
    let source = folder.join("node_modules/axe-core/axe.min.js");
    if !source.is_file() {
        let words = ["install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"];
        let install =
            Command::new("npm").args(words).current_dir(&folder).stdin(Stdio::null()).status();
        ensure!(install.context("npm: apt-get install nodejs npm")?.success(), "npm install");
    }
    Ok(std::fs::read_to_string(source)?)
}

/// A person at a screen, who looks at every page in both schemes.
struct Person {
    browser: Browser,
    axe: String,
    pictures: PathBuf,
}

impl Person {
    async fn at(screen: Screen) -> Result<Self> {
        let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join(match screen {
            Screen::Desktop => "desktop",
            Screen::Phone => "phone",
        });
        std::fs::create_dir_all(&pictures)?;
        Ok(Self { browser: Browser::start(screen).await?, axe: axe()?, pictures })
    }

    /// Checks the page in view, and takes its pictures.
    async fn look(&self, name: &str) -> Result<()> {
        let client = &self.browser.client;
        client.execute(&self.axe, Vec::new()).await?;
        for scheme in ["light", "dark"] {
            self.browser.prefer(scheme).await?;
            let odd = client.execute(FITS, Vec::new()).await?;
            ensure!(odd == "", "{name}: {}", odd.as_str().unwrap_or_default());
            let odd = client.execute_async(AXE, Vec::new()).await?;
            ensure!(odd == "", "{name}, {scheme}: {}", odd.as_str().unwrap_or_default());
            let picture = self.pictures.join(format!("{name}-{scheme}.png"));
            std::fs::write(picture, client.screenshot().await?)?;
        }
        Ok(())
    }

    async fn visit(&self, name: &str, address: &str) -> Result<()> {
        self.browser.goto(address).await?;
        self.look(name).await
    }

    /// Goes to the button with that text by the tabulator key, and presses it.
    async fn press(&self, text: &str) -> Result<()> {
        let client = &self.browser.client;
        for _ in 0..60 {
            let here = client.active_element().await?;
            if here.text().await?.trim() == text {
                return Ok(here.send_keys(&String::from(char::from(Key::Enter))).await?);
            }
            here.send_keys(&String::from(char::from(Key::Tab))).await?;
        }
        anyhow::bail!("no way to “{text}” by keyboard")
    }

    async fn fill(&self, field: &str, text: &str) -> Result<()> {
        let selector = format!("[name={field}]");
        let field = self.browser.client.find(Locator::Css(&selector)).await?;
        field.clear().await?;
        Ok(field.send_keys(text).await?)
    }

    /// Buys something, waits for the receipt, and logs in, looking at each page.
    async fn walk(&self, base: &str) -> Result<()> {
        let browser = &self.browser;
        self.visit("shelves", &format!("{base}/")).await?;
        self.visit("search", &format!("{base}/?q=walnut&category=Desk")).await?;
        self.visit("nothing", &format!("{base}/?q=zzz")).await?;
        self.visit("product", &format!("{base}/products/1980")).await?;
        self.press("Add to cart").await?;
        browser.until("the cart", "location.pathname === '/cart'").await?;
        self.press("+").await?;
        browser.until("two pieces", "document.querySelector('.count').innerText === '2'").await?;
        self.look("cart").await?;
        self.fill("email", "ann@example.com").await?;
        self.press("Buy").await?;
        browser
            .until("the receipt", "document.body.innerText.includes('The receipt was sent')")
            .await?;
        self.look("order").await?;

        // The address is remembered.
        self.visit("product", &format!("{base}/products/1")).await?;
        self.press("Add to cart").await?;
        browser.until("the address", "document.querySelector('[name=email]').value").await?;

        self.visit("sign-up", &format!("{base}/signup")).await?;
        // A visitor who is not logged in comes to the log-in, and then to where they wanted to go.
        self.visit("log-in", &format!("{base}/devices")).await?;
        self.fill("email", "ann@example.com").await?;
        self.fill("password", "wrong").await?;
        self.press("Log in").await?;
        browser.until("the refusal", "document.querySelector('[role=alert]')").await?;
        self.look("log-in-refused").await?;
        browser
            .until("the address", "document.querySelector('[name=email]').value.includes('ann')")
            .await?;
        self.fill("password", "correct horse battery staple").await?;
        self.press("Log in").await?;
        browser.until("the devices", "location.pathname === '/devices'").await?;
        self.look("devices").await?;
        for (name, path) in [
            ("orders", "orders"),
            ("passkeys", "passkeys"),
            ("forgot", "forgot"),
            ("account", "account"),
            ("second-factor", "account/second-factor"),
            ("export", "account/export"),
        ] {
            self.visit(name, &format!("{base}/{path}")).await?;
        }
        self.visit("refused", &format!("{base}/products/x")).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_buys_and_logs_in_on_a_desktop_and_on_a_phone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = free_port()?;
    let config = folder.path().join("shop.toml");
    let text = format!(
        "plain_http = true\nlisten = \"127.0.0.1:{port}\"\norigin = \"http://localhost:{port}\"\n\
         secret = \"{}\"\n",
        "07".repeat(32)
    );
    std::fs::write(&config, text)?;
    let config = config.to_string_lossy().into_owned();
    let shop = Shop::open_in(folder.path(), &["--config", &config]).await?;
    let base = format!("http://localhost:{port}");
    for screen in [Screen::Desktop, Screen::Phone] {
        let person = Person::at(screen).await?;
        person.walk(&base).await.with_context(|| format!("{screen:?}"))?;
        person.browser.client.clone().close().await?;
    }
    shop.close().await
}

/// A refusal of a layer or an extractor is a page with a way back, for a browser; other clients get
/// its bare text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_pages() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = Shop::open_in(folder.path(), &["--listen", "127.0.0.1:0"]).await?;
    let base = shop.base.clone();
    let mut browser = Visitor::new();
    browser.headers.push(("accept", "text/html,*/*;q=0.8".into()));
    browser.headers.push(("referer", format!("{base}/products/3")));
    let no_form: [(&str, &str); 0] = [];
    for (path, status) in [("/products/x", 400), ("/?after=x", 400), ("/metrics", 404)] {
        let page = browser.get(&base, path).await?;
        assert_eq!(page.status, status, "{path}");
        assert!(page.body.contains("href=\"/\""), "{path}: {}", page.body);
    }
    for (path, status) in [("/cart", 422), ("/", 405), ("/checkout", 422), ("/login", 422)] {
        let page = browser.post(&base, path, &no_form).await?;
        assert_eq!(page.status, status, "{path}");
        let ways = page.body.contains("href=\"/\"") && page.body.contains("href=\"/products/3\"");
        assert!(ways, "{path}: {}", page.body);
    }
    let bare = Visitor::new().get(&base, "/products/x").await?;
    assert!(bare.status == 400 && !bare.body.contains("<html"), "{}", bare.body);

    // Another site's address as the next page, or as the way back, is none.
    let mut visitor = Visitor::new();
    for next in ["//evil.example", "https://evil.example", "/\\evil.example", "/\tx"] {
        let form = [
            ("email", "ann@example.com"),
            ("password", "correct horse battery staple"),
            ("next", next),
        ];
        let page = visitor.post(&base, "/login", &form).await?;
        assert_eq!((page.status.as_u16(), &*page.path), (200, "/"), "{next}");
    }
    visitor.headers.push(("accept", "text/html".into()));
    visitor.headers.push(("referer", "https://evil.example/x".into()));
    assert!(!visitor.get(&base, "/products/x").await?.body.contains("Back"));
    visitor.headers.pop();
    visitor.headers.push(("referer", format!("{base}//evil.example/x")));
    assert!(!visitor.get(&base, "/products/x").await?.body.contains("evil.example"));

    // A wrong address at the checkout keeps what was typed, and the cart.
    let mut buyer = Visitor::new();
    buyer.post(&base, "/cart", &[("product", "3"), ("add", "1")]).await?;
    let cart = buyer.get(&base, "/cart").await?.body;
    let [token, total] = ["token", "total"].map(|name| common::field(&cart, name).unwrap());
    let form = [("token", &*token), ("total", &*total), ("email", "ann at example")];
    let page = buyer.post(&base, "/checkout", &form).await?;
    assert_eq!(page.status, 422);
    assert!(page.body.contains("value=\"ann at example\""), "{}", page.body);
    assert!(page.body.contains("class=\"count\">1<"), "{}", page.body);

    // The page of an order looks for its receipt a few times, and not for ever.
    let form = [("token", &*token), ("total", &*total), ("email", "ann@example.com")];
    let order = buyer.post(&base, "/checkout", &form).await?.path;
    let page = buyer.get(&base, &format!("{order}?look=7")).await?;
    assert!(!page.body.contains("http-equiv"), "{}", page.body);
    shop.close().await
}
