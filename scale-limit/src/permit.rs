//! Places held: free again when dropped.

/// The places of one decision.
pub(crate) struct Permits(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Permits {
    /// `release` must not wait: it is called when something is dropped.
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
