-- A script like any other: words counted, sorted, joined; primes from a coroutine; closures; garbage.
local words, count = {}, 0
for i = 1, 20000 do
    local word = string.format("%x", i * 2654435761 % 65536)
    words[word] = (words[word] or 0) + 1
    count = count + #word
end
local keys = {}
for word in pairs(words) do keys[#keys + 1] = word end
table.sort(keys)
assert(#table.concat(keys, ",") == count + #keys - 1) -- the multiplier is odd: no word comes twice

local function primes(limit)
    return coroutine.wrap(function()
        local composite = {}
        for i = 2, limit do
            if not composite[i] then
                coroutine.yield(i)
                for j = i * i, limit, i do composite[j] = true end
            end
        end
    end)
end
local sum = 0
for prime in primes(10000) do sum = sum + prime end
for i = 1, 200 do local garbage = {i, tostring(i), function() return i end} end
print("the primes below 10,000 add up to " .. sum)
