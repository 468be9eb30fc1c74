-- Rules on several GCRA charges at once: all admit, or none is charged.
-- KEYS  one theoretical arrival time (TAT) for each charge, all in one slot
-- ARGV  for each charge: interval (us per unit), burst (units), cost (units), 1 if dry run
-- Reply for each charge: admitted (0/1), TAT ahead of now before the charge (us), after it (us); as decimal strings
-- Cost  one TIME, one MGET, and one SET for each charge; O(charges)
-- Times are microseconds since 2025-01-01, small enough for a double to hold fractions of them.
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local stored = redis.call('MGET', unpack(KEYS))
local reply, nexts, seen, everybody = {}, {}, {}, true
for i = 1, #KEYS do
  local base = (i - 1) * 4
  local interval, burst, cost = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3])
  local tat = seen[KEYS[i]] or tonumber(stored[i] or now)
  if tat < now then tat = now end
  local after = tat + cost * interval
  -- A hundredth of a microsecond of rounding must not deny a unit.
  local admitted = after - now <= burst * interval + 0.01
  if admitted then
    nexts[i] = after
    seen[KEYS[i]] = after
  elseif ARGV[base + 4] ~= '1' then
    everybody = false
  end
  reply[#reply + 1] = admitted and '1' or '0'
  reply[#reply + 1] = string.format('%.3f', tat - now)
  reply[#reply + 1] = string.format('%.3f', after - now)
end
if everybody then
  for i = 1, #KEYS do
    if nexts[i] then
      redis.call('SET', KEYS[i], string.format('%.3f', nexts[i]), 'PX', math.ceil((nexts[i] - now) / 1000) + 1)
    end
  end
end
return reply
