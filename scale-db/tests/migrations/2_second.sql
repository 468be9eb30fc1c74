create index migrated_name on migrated (name);
