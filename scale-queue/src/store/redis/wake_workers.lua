-- Wakes workers: one in place of a worker that takes nothing for now, many when a pause ends.
-- KEYS  sleepers, paused [, lines: their first jobs are to be tried now]
-- ARGV  wake channel, queue, 1 in a Cluster, count [, a worker to be removed from the idle ones]
-- Reply 1
-- Cost  ZPOPMAX and PUBLISH for each worker woken, ZADD for each line, at most 1,000
if KEYS[3] then
  local now = clock()
  for _, line in ipairs(redis.call('ZRANGE', KEYS[3], '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, 1000)) do
    redis.call('ZADD', KEYS[3], now, line)
  end
end
if ARGV[5] and ARGV[5] ~= '' then redis.call('ZREM', KEYS[1], ARGV[5]) end
if redis.call('EXISTS', KEYS[2]) == 0 then wake(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[3] == '1') end
return 1
