-- Tables, strings, closures, coroutines. Prints one line that depends on all of it.
local state = 1
local function next_number(limit)
  state = (state * 1103515245 + 12345) % 2147483648
  return state % limit
end

local sum = 0
local function add(text)
  for i = 1, #text, 7 do sum = (sum * 31 + text:byte(i)) % 1000000007 end
end

local kept = {}
for i = 1, 120000 do
  local slot = next_number(5000)
  kept[slot] = { i, name = "key" .. i, list = { i, i + 1, function() return i end } }
  if i % 3 == 0 then kept[next_number(5000)] = string.rep("x", next_number(300)) end
  if i % 20000 == 0 then collectgarbage() end
end
for slot = 0, 4999 do
  local value = kept[slot]
  if type(value) == "table" then add(value.name .. value.list[3]()) elseif value then add(value) end
end

local parts = {}
for i = 1, 20000 do parts[i] = tostring(next_number(1000000)) end
add(table.concat(parts, ","):gsub("%d+", "<%0>"))

local made = {}
for i = 1, 500 do
  made[i] = coroutine.wrap(function() for n = 1, 20 do coroutine.yield(string.rep("y", n * i)) end end)
end
for _ = 1, 20 do for i = 1, 500 do add(made[i]()) end end
for power = 10, 24 do add(string.rep("z", 1 << power)) end
print(sum)
