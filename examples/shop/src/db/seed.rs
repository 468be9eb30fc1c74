//! Two thousand sample products, always the same ones, and the account of a demonstration.

use anyhow::{Context, Result};

use super::users::{self, NewAccount, Role};
use super::{search, sql};
use crate::app::{App, Database};

const MATERIALS: [&str; 12] = [
    "Oak", "Walnut", "Linen", "Wool", "Copper", "Brass", "Stoneware", "Glass", "Cork", "Bamboo",
    "Slate", "Enamel",
];
const STYLES: [&str; 10] = [
    "Classic", "Low", "Tall", "Folding", "Striped", "Round", "Small", "Wide", "Everyday", "Winter",
];

/// Category, its products, the lowest price in cents, and the description.
const SHELVES: [(&str, [&str; 4], i64, &str); 5] = [
    (
        "Kitchen",
        ["Bowl", "Mug", "Board", "Jar"],
        900,
        "Made for daily use; goes from the stove to the table, and washes by hand in a minute.",
    ),
    (
        "Living",
        ["Lamp", "Stool", "Basket", "Vase"],
        2_900,
        "A quiet piece for a shelf or a corner, which looks better with every year it is used.",
    ),
    (
        "Bath",
        ["Towel", "Tray", "Soap dish", "Hook"],
        700,
        "Dries quickly, stays in shape, and comes from a workshop that answers its letters.",
    ),
    (
        "Garden",
        ["Planter", "Trowel", "Lantern", "Bench"],
        1_900,
        "Stands rain and frost; we have left ours outside for three winters to be sure.",
    ),
    (
        "Desk",
        ["Tray organiser", "Pencil box", "Clock", "Notebook holder"],
        1_200,
        "Keeps what you reach for within reach, and the rest out of sight.",
    ),
];

/// Account of a demonstration, which the log-in page shows: everybody knows its password.
pub(crate) const EMAIL: &str = "ann@example.com";
pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// Creates the account of a demonstration, if it does not exist.
pub(crate) async fn demo_account(app: &App) -> Result<()> {
    let hash = app.passwords.hash(PASSWORD).await?;
    let new = NewAccount { email: EMAIL, name: "Ann", role: Role::Staff, hash };
    users::create(&app.db, new).await.map(drop)
}

/// Fills an empty catalogue; returns the number of products.
pub(crate) async fn products(db: &Database) -> Result<i64> {
    let count: i64 =
        sqlx::query_scalar("select count(*) from products").fetch_one(db.primary()).await?;
    if count > 0 {
        return Ok(count);
    }
    let mut tx = db.begin().await?;
    let mut number = 0_i64;
    for style in STYLES {
        for material in MATERIALS {
            for (category, things, lowest, text) in SHELVES {
                for thing in things {
                    number += 1;
                    let insert = "insert into products (name, category, description, price_cents, \
                        stock) values ($1, $2, $3, $4, $5)";
                    sqlx::query(sql(db, insert))
                        .bind(format!(
                            "{style} {} {}",
                            material.to_lowercase(),
                            thing.to_lowercase()
                        ))
                        .bind(category)
                        .bind(format!("{material}, {}. {text}", style.to_lowercase()))
                        .bind(lowest + number * 37 % 90 * 50)
                        .bind(5 + number * 13 % 60)
                        .execute(&mut *tx)
                        .await
                        .context("inserting the products")?;
                }
            }
        }
    }
    for (category, ..) in SHELVES {
        sqlx::query(sql(db, "insert into categories (name) values ($1)"))
            .bind(category)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    search::complete(db).await?;
    tracing::info!(products = number, "the products were inserted");
    Ok(number)
}
