-- Rules on GCRA charges of several requests: of each request all admit, or none is charged.
-- KEYS  one theoretical arrival time (TAT) for each charge, all in one slot if this is a Cluster
-- ARGV  for each request: its number of charges, then for each charge: interval (us per unit), burst (units), cost (units), 1 if dry run
-- Reply for each charge: admitted (0/1), TAT ahead of now before the charge (us), after it (us)
-- Cost  one TIME, one MGET, and one SET for each key charged; O(charges)
-- Times are microseconds since 2025-01-01, small enough for a double to hold fractions of them.
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local stored = redis.call('MGET', unpack(KEYS))
local tats, charged, reply = {}, {}, {}
for i = 1, #KEYS do
  local tat = tonumber(stored[i] or now)
  if tat < now then tat = now end
  tats[KEYS[i]] = tat
end
local arg, key, r = 1, 1, 0
while arg <= #ARGV do
  local last = key + tonumber(ARGV[arg]) - 1
  arg = arg + 1
  local everybody, mine = true, {}
  for i = key, last do
    local name, interval, burst, cost = KEYS[i], tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    local tat = mine[name] or tats[name]
    local after = tat + cost * interval
    reply[r + 2] = math.floor(tat - now)
    reply[r + 3] = math.ceil(after - now)
    -- A hundredth of a microsecond of rounding must not deny a unit.
    if after - now <= burst * interval + 0.01 then
      reply[r + 1] = 1
      mine[name] = after
    else
      reply[r + 1] = 0
      if ARGV[arg + 3] ~= '1' then everybody = false end
    end
    arg, r = arg + 4, r + 3
  end
  if everybody then
    for name, tat in pairs(mine) do
      tats[name] = tat
      charged[name] = tat
    end
  end
  key = last + 1
end
for name, tat in pairs(charged) do
  redis.call('SET', name, tat, 'PX', math.max(math.ceil((tat - now) / 1000), 0) + 1)
end
return reply
