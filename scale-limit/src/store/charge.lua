-- Rules on GCRA charges of several requests: of each request all admit, or none is charged.
-- KEYS  one theoretical arrival time (TAT) for each charge, all in one slot if this is a Cluster
-- ARGV  number of kinds of charges, for each kind: interval (us per unit), burst (units), cost (units), 1 if dry run;
--       then for each request: its number of charges, and the kind of each (0 is the first)
-- Reply for each charge: admitted (0/1), TAT ahead of now before the charge (us), after it (us)
-- Cost  one TIME, one MGET, and one SET for each key charged; O(charges)
-- Times are microseconds since 2025-01-01, as doubles: they hold fractions of a microsecond for centuries. They are stored as their eight
-- bytes: printing and reading numbers would cost more than all the rest.
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local stored = redis.call('MGET', unpack(KEYS))

local kinds, arg = {}, 2
for i = 0, tonumber(ARGV[1]) - 1 do
  local interval, burst, cost = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  -- A hundredth of a microsecond of rounding must not deny a unit.
  kinds[tostring(i)] = { cost * interval, burst * interval + 0.01, ARGV[arg + 3] == '1' }
  arg = arg + 4
end

-- TATs by key as charged in this call, so that a key that comes twice is charged twice.
local tats, reply, r, key = {}, {}, 0, 1
while arg <= #ARGV do
  local last = key + tonumber(ARGV[arg]) - 1
  arg = arg + 1
  local everybody, mine = true, nil
  for i = key, last do
    local name, kind = KEYS[i], kinds[ARGV[arg]]
    local tat = mine and mine[name] or tats[name]
    if not tat then
      local bytes = stored[i]
      tat = bytes and #bytes == 8 and struct.unpack('>d', bytes) or now
      if tat < now then tat = now end
    end
    local after = tat + kind[1]
    -- Redis cuts fractions off: down before, up after.
    reply[r + 2] = tat - now
    reply[r + 3] = after - now + 0.999
    if after - now <= kind[2] then
      reply[r + 1] = 1
      if key == last then
        tats[name] = after
      else
        mine = mine or {}
        mine[name] = after
      end
    else
      reply[r + 1] = 0
      everybody = everybody and kind[3]
    end
    arg, r = arg + 1, r + 3
  end
  if mine and everybody then
    for name, tat in pairs(mine) do tats[name] = tat end
  end
  key = last + 1
end

local texts = {}
for name, tat in pairs(tats) do
  local life = math.max(math.ceil((tat - now) / 1000), 0) + 1
  local text = texts[life]
  if not text then
    text = string.format('%d', life)
    texts[life] = text
  end
  redis.call('SET', name, struct.pack('>d', tat), 'PX', text)
end
return reply
