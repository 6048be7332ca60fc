-- What a careless script does with a secret: copies in tables, keys, closures, coroutines, joined and taken apart.
assert(#secret >= 16, "run with --secret FILE")
local copies = {[secret] = true}
for i = 1, 100 do copies[i] = i .. ":" .. secret .. ":" .. i end
local text = table.concat(copies, ",")
local upper, reversed, long = secret:upper(), secret:reverse(), secret:rep(1000, " ")
local first = function() return secret:sub(1, 16) end
local waiting = coroutine.create(function(own) coroutine.yield(own .. first()) end)
assert(coroutine.resume(waiting, secret .. "!"))
for byte in secret:gmatch(".") do copies[#copies + 1] = byte .. secret end
print("copied " .. select(2, text:gsub(secret:gsub("%p", "%%%0"), "")) .. " times in one string of " .. #text - 100 * #secret .. " other bytes")
kept = {copies, text, upper, reversed, long, first, waiting}
