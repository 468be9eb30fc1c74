-- The session that has replaced another.
alter table scale_sessions add column next text;
