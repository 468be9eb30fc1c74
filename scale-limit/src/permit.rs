//! Permits, released when dropped.

/// Permits of one decision.
pub(crate) struct Permits(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Permits {
    /// Creates permits. `release` must not block: it runs in a destructor.
    pub(crate) fn new(release: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(release)))
    }

    #[cfg(feature = "redis")]
    pub(crate) fn and(self, other: Option<Self>) -> Self {
        match other {
            None => self,
            Some(other) => Self::new(move || drop((self, other))),
        }
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}

impl std::fmt::Debug for Permits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permits")
    }
}
