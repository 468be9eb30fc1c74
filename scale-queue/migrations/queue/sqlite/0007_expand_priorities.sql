-- Waiting jobs with a priority: `suspect` is 2 for high and 3 for low. Workers of the version before
-- do not take them.
create index if not exists scale_queue_jobs_priority on scale_queue_jobs (app, queue, suspect, due_ms, id)
    where suspect > 1 and worker is null and line is null;
