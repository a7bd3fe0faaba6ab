-- `exchange_1` on a connection that is lent to us for a transaction, and so is not set up for it.
-- Inputs: as there
-- Result: as there
-- Locks: as there
-- Atomic: as there
CREATE OR REPLACE FUNCTION nb.exchange_pooled_1(
    p_now int8, p_session text, p_number int8, p_kinds text, p_seqs int8[], p_ids bytea[],
    p_fences int4[], p_nonces bytea[], p_bodies bytea[], p_delays int8[], p_texts text[],
    p_fractions float8[], p_total int4, p_nonce bytea, p_ageing int8, p_queues text[], p_names text[],
    p_levels int8[], p_caps int4[], p_max_bytes int8, p_floor_lanes int4[], p_floors int8[], p_scheduled_floor int8
) RETURNS SETOF nb.reply
LANGUAGE plpgsql
SET enable_seqscan TO off SET enable_bitmapscan TO off SET enable_hashjoin TO off
SET enable_mergejoin TO off SET enable_material TO off SET jit TO off
SET plan_cache_mode TO force_generic_plan AS $$
BEGIN
    RETURN QUERY SELECT * FROM nb.exchange_1(
        p_now, p_session, p_number, p_kinds, p_seqs, p_ids, p_fences, p_nonces, p_bodies, p_delays,
        p_texts, p_fractions, p_total, p_nonce, p_ageing, p_queues, p_names, p_levels, p_caps,
        p_max_bytes, p_floor_lanes, p_floors, p_scheduled_floor
    );
END $$;
