-- set_tenant_weight: sets the weight of a tenant.
-- Keys: tenant_weight
-- Arguments: ARGV[3] the tenant, [4] its weight in hundredths, '' for the default
-- Reply: nothing
-- Atomic: one script.
-- Cost: O(1).
if ARGV[4] == '' then
  redis.call('HDEL', tenant_weight_key, ARGV[3])
else
  redis.call('HSET', tenant_weight_key, ARGV[3], ARGV[4])
end
