-- Lists the built-in functions, aggregates and window functions of a Postgres server that neither
-- write, lock nor wait according to its catalogue: no overload of that name is volatile. Functions
-- that describe the node itself (`pg_…`, `txid_…`, `inet_…`), that run a query (`…_to_xml…`), or
-- that SQL cannot call are left out.
--
--     psql -X -At -f postgres.sql > postgres.txt
select distinct proname
from pg_proc p
where pronamespace = 'pg_catalog'::regnamespace
    and prokind in ('f', 'a', 'w')
    and not exists (select from pg_proc o where o.pronamespace = p.pronamespace and o.proname = p.proname and o.provolatile = 'v')
    and not proargtypes::oid[] && array['internal'::regtype::oid, 'cstring'::regtype]
    and prorettype <> all (array['internal'::regtype, 'trigger', 'event_trigger', 'cstring'])
    and proname !~ '^(pg_|txid_|inet_(client|server)_|lo_|ri_|RI_|binary_upgrade_|fmgr_|has_|row_security)'
    and proname !~ '(_to_xml|_fdw_|send$|^current_setting$)'
order by proname;
