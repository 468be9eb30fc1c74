-- Writes a ban, or that one is lifted.
-- KEYS  the log, a stream; the operators' bans, a hash
-- ARGV  operator, rule or lifted; subject; for how long, ms; reason; operators' bans at most
-- Reply 1, or 0 if there is no room for one more operator's ban
-- Cost  one TIME, one HGET, one HSET, one XADD; once the hash is full one look at all of it
local by, subject, ms, reason = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if by == 'operator' then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local known = redis.call('HGET', KEYS[2], subject)
  if known then
    -- The longer one stands.
    if struct.unpack('>d', known) >= now + ms then return 1 end
  elseif redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[5]) then
    local kept = redis.call('HGETALL', KEYS[2])
    for i = 1, #kept, 2 do
      if struct.unpack('>d', kept[i + 1]) <= now then redis.call('HDEL', KEYS[2], kept[i]) end
    end
    if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[5]) then return 0 end
  end
  redis.call('HSET', KEYS[2], subject, struct.pack('>d', now + ms) .. reason)
elseif by == 'lifted' then
  redis.call('HDEL', KEYS[2], subject)
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', 100000, '*', 'by', by, 'subject', subject, 'ms', ARGV[3], 'reason', reason)
return 1
