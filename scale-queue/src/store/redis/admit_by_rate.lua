-- Begins one job of a rate, if the rate has room (GCRA).
-- KEYS  theoretical arrival time: when the next job is due, ms with fractions; queues that have a
--       line for the key, by the time at which its first job is to be tried
-- ARGV  spacing (ms, with fractions), burst, queue, queues that go first
-- Reply 0 if the job may begin, or ms to wait; then the queue that goes first, or '', and the score
--       under which that queue is recorded
-- Cost  O(queues that go first)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
local spacing, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local next = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local wait = math.max(0, math.ceil(next - now - spacing * (burst - 1)))
local first, said = '', '0'
if wait == 0 then
  for n = 4, #ARGV do
    local due = redis.call('ZSCORE', KEYS[2], ARGV[n])
    -- A job of an earlier queue that is about to be tried goes first.
    if due and tonumber(due) <= now + spacing / 2 then
      first, said = ARGV[n], due
      wait = math.max(1, math.ceil(spacing))
      break
    end
  end
end
if wait > 0 then
  redis.call('ZADD', KEYS[2], now + wait, ARGV[3])
  redis.call('PEXPIRE', KEYS[2], 60000 + wait)
  return { wait, first, said }
end
redis.call('SET', KEYS[1], string.format('%.3f', next + spacing), 'PX', math.ceil(next + spacing - now) + 1)
return { 0, '', '0' }
