-- For wrk: sends the files named after `--`, each a whole HTTP request, one after another.
local requests, last = {}, 0

function init(args)
   for i, name in ipairs(args) do
      local file = assert(io.open(name, "rb"))
      requests[i] = file:read("*a")
      file:close()
   end
end

function request()
   last = last % #requests + 1
   return requests[last]
end
