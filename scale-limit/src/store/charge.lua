-- Rules on charges of several requests: of each request all admit, or none is charged.
-- KEYS  one for each charge, all in one slot if this is a Cluster
-- ARGV  number of kinds of charges; for each kind nine values:
--         algorithm   1 GCRA               2 window               3 places
--         x           us per unit          us per slot            us until a place frees itself
--         y           burst (units)        quota                  quota
--         z           -                    slots that count       -
--         cost, least  units asked for, and how few will do
--         dry         1: holds back nobody
--         mode        0 charge, 1 give back, 2 debit
--         age         us since it was charged, for giving back
--       then for each request: its number of charges, and for each the kind (0 is the first) and, for places, the permit
-- Reply for each charge, by algorithm:
--         GCRA    granted (units, 0 if denied), TAT ahead of now after the charge (us); if nothing is granted also before it (us)
--         window  granted, units left, us until the cost would fit (-1: never), us until all is there again
--         places  granted, places left
-- Cost  one TIME, one MGET, one write for each key charged; for places also one sweep and one count. O(charges x slots)
-- Times are microseconds since 2025-01-01, as doubles: they hold fractions of a microsecond for centuries. They are stored as their eight
-- bytes: printing and reading numbers would cost more than all the rest.
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local stored = redis.call('MGET', unpack(KEYS))

local unpack_double = struct.unpack
local kinds, arg = {}, 2
for i = 0, tonumber(ARGV[1]) - 1 do
  local kind = { dry = ARGV[arg + 6] == '1' }
  for n = 1, 9 do kind[n] = tonumber(ARGV[arg + n - 1]) end
  if kind[1] == 1 then
    -- A hundredth of a microsecond of rounding must not deny a unit.
    kind.worth, kind.capacity = kind[5] * kind[2], kind[3] * kind[2] + 0.01
    kind.plain = kind[8] == 0 and kind[6] == kind[5] and kind[5] > 0
  elseif kind[1] == 2 then
    kind.format = '>d' .. string.rep('I4', kind[4])
  end
  kinds[tostring(i)] = kind
  arg = arg + 9
end

-- What keys are after this call, so that a key that comes twice is charged twice.
local tats, windows, places, taken = {}, {}, {}, {}
-- What a request that is denied in the end has changed: where, which, and what it was.
local undone, undo_in, undo_key, undo_value = 0, {}, {}, {}

local function window_of(name, bytes, kind)
  local window = windows[name]
  if not window then
    local kept = kind[4]
    if bytes and #bytes == 8 + 4 * kept then
      window = { struct.unpack(kind.format, bytes) }
    else
      window = { 0 }
      for i = 1, kept do window[i + 1] = 0 end
    end
    window.kind = kind
    windows[name] = window
    -- Time going backwards stays in the newest slot.
    local newest = math.max(math.floor(now / kind[2]), window[1])
    local by = math.min(newest - window[1], kept)
    for i = kept, 1, -1 do window[i + 1] = i > by and window[i - by + 1] or 0 end
    window[1] = newest
  end
  return window
end

local function place_of(name)
  local held = places[name]
  if not held then
    redis.call('ZREMRANGEBYSCORE', name, '-inf', now)
    held = redis.call('ZCARD', name)
    places[name] = held
  end
  return held
end

local reply, r, key = {}, 0, 1
while arg <= #ARGV do
  local last = key + tonumber(ARGV[arg]) - 1
  arg = arg + 1
  local everybody, several, first_taken = true, key < last, #taken
  undone = 0
  for i = key, last do
    local name, kind, granted = KEYS[i], kinds[ARGV[arg]], 0
    arg = arg + 1
    local algorithm, mode = kind[1], kind[8]
    if kind.plain then
      -- The common case: a bucket that is asked.
      local known = tats[name]
      local tat = known
      if not tat then
        local bytes = stored[i]
        tat = bytes and #bytes == 8 and unpack_double('>d', bytes) or now
        if tat < now then tat = now end
      end
      local after = tat + kind.worth
      -- Redis cuts fractions off: down before, up after.
      if after - now <= kind.capacity then
        granted = kind[5]
        tats[name] = after
        if several then
          undone = undone + 1
          undo_in[undone], undo_key[undone], undo_value[undone] = tats, name, known
        end
        reply[r + 1], reply[r + 2] = granted, after - now + 0.999
        r = r + 2
      else
        if not kind.dry then everybody = false end
        reply[r + 1], reply[r + 2], reply[r + 3] = 0, after - now + 0.999, tat - now
        r = r + 3
      end
    elseif algorithm == 1 then
      local known = tats[name]
      local tat = known
      if not tat then
        local bytes = stored[i]
        tat = bytes and #bytes == 8 and struct.unpack('>d', bytes) or now
        if tat < now then tat = now end
      end
      local after = tat + kind.worth
      if mode == 1 then
        after = math.max(tat - math.max(kind.worth - kind[9], 0), now)
        granted = kind[5]
      elseif mode == 2 or after - now <= kind.capacity then
        granted = kind[5]
      elseif kind[6] < kind[5] then
        local left = math.floor((kind.capacity - (tat - now)) / kind[2])
        if left > 0 and left >= kind[6] then
          granted, after = left, tat + left * kind[2]
        end
      end
      if granted > 0 then
        tats[name] = after
        if several then
          undone = undone + 1
          undo_in[undone], undo_key[undone], undo_value[undone] = tats, name, known
        end
      end
      reply[r + 1], reply[r + 2] = granted, after - now + 0.999
      r = r + 2
      if granted == 0 then
        reply[r + 1] = tat - now
        r = r + 1
      end
    elseif algorithm == 2 then
      local window, kept = window_of(name, stored[i], kind), kind[4]
      local used = 0
      for n = 2, kept + 1 do used = used + window[n] end
      local left = math.max(kind[3] - used, 0)
      local retry = 0
      if mode == 1 then
        local slot = window[1] - math.floor((now - kind[9]) / kind[2])
        if slot < kept then window[slot + 2] = math.max(window[slot + 2] - kind[5], 0) end
        granted = kind[5]
      elseif mode == 2 or kind[5] <= left then
        granted = kind[5]
      elseif left > 0 and left >= kind[6] and kind[6] < kind[5] then
        granted = left
      else
        retry = -1
        for n = kept + 1, 2, -1 do
          used = used - window[n]
          if used + kind[5] <= kind[3] then
            retry = (window[1] - (n - 2) + kept) * kind[2] - now
            break
          end
        end
      end
      if mode ~= 1 and granted > 0 then
        window[2] = math.min(window[2] + granted, 4294967295)
        window.dirty = true
        if several then
          undone = undone + 1
          undo_in[undone], undo_key[undone], undo_value[undone] = window, 2, window[2] - granted
        end
      elseif mode == 1 then
        window.dirty = true
      end
      local full = 0
      for n = 2, kept + 1 do
        if window[n] > 0 then
          full = (window[1] - (n - 2) + kept) * kind[2] - now
          break
        end
      end
      reply[r + 1], reply[r + 2], reply[r + 3], reply[r + 4] = granted, left - granted, math.ceil(retry), math.ceil(full)
      r = r + 4
    else
      local permit, held = ARGV[arg], place_of(name)
      arg = arg + 1
      local left = math.max(kind[3] - held, 0)
      if kind[5] <= left then
        granted = kind[5]
        places[name] = held + granted
        if several then
          undone = undone + 1
          undo_in[undone], undo_key[undone], undo_value[undone] = places, name, held
        end
        for n = 1, granted do taken[#taken + 1] = { name, permit .. ':' .. n, kind[2] } end
      end
      reply[r + 1], reply[r + 2] = granted, left - granted
      r = r + 2
    end
    if granted == 0 and kind[5] > 0 and not kind.dry then everybody = false end
  end
  if several and not everybody then
    for n = undone, 1, -1 do undo_in[n][undo_key[n]] = undo_value[n] end
    for n = #taken, first_taken + 1, -1 do taken[n] = nil end
  end
  key = last + 1
end

local texts = {}
local function life(us)
  local life = math.max(math.ceil(us / 1000), 0) + 1
  local text = texts[life]
  if not text then
    text = string.format('%d', life)
    texts[life] = text
  end
  return text
end
for name, tat in pairs(tats) do
  redis.call('SET', name, struct.pack('>d', tat), 'PX', life(tat - now))
end
for name, window in pairs(windows) do
  if window.dirty then
    local kind = window.kind
    local bytes = struct.pack(kind.format, unpack(window, 1, kind[4] + 1))
    redis.call('SET', name, bytes, 'PX', life((window[1] + kind[4]) * kind[2] - now))
  end
end
for _, place in ipairs(taken) do
  redis.call('ZADD', place[1], now + place[3], place[2])
  redis.call('PEXPIRE', place[1], life(place[3]))
end
return reply
