//! Statements of all SQL stores, for tests of their query plans.

/// Returns the statements that the stores run on a database system, by name, for tests of their
/// query plans.
pub fn statements_of(system: scale_sql::System) -> Vec<(&'static str, String)> {
    let all = crate::store::sql::Texts::new(system).all();
    #[cfg(feature = "auth")]
    let all = [
        all,
        crate::auth::one_time_store::Texts::new(system).all(),
        crate::auth::records::Texts::new(system).all(),
        crate::auth::audit::Texts::new(system).all(),
    ]
    .concat();
    all.into_iter().map(|(name, statement)| (name, statement.text().to_owned())).collect()
}
