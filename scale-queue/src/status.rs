//! Status of queues, jobs, batches, workers and schedules, as [`Queue`](crate::Queue) and the
//! dashboard list them.

pub use crate::format::Failure;
pub use crate::queue::listing::{Dead, Listing};
pub use crate::registry::{BatchListing, ScheduleStatus, WorkerStatus};
pub use crate::result::Waited;
pub use crate::store::{Resolution, Sample, State, Stats};
