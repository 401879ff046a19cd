-- What PgBouncer asks before it lets a user in. PEM's own function answers for members of
-- pem_agent_pool; this one closes what it leaves open: it honours VALID UNTIL, its search_path is
-- fixed, and no superuser gets through whatever PEM's function returns.
--
-- Whoever may not come in is an error, not an empty answer: PgBouncer (seen in 1.24.1) keeps a user
-- that it has let in before when the answer is empty, and would let an expired one in for ever.
CREATE OR REPLACE FUNCTION pem_fleet.get_pool_auth(p_usename text)
RETURNS TABLE (username text, password text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN QUERY
        SELECT answer.name::pg_catalog.text, answer.secret::pg_catalog.text
        FROM pem.get_agent_pool_auth(p_usename) AS answer (name, secret)
        JOIN pg_catalog.pg_authid AS role ON role.rolname = answer.name
        WHERE role.rolcanlogin
          AND NOT role.rolsuper
          AND (role.rolvaliduntil IS NULL OR role.rolvaliduntil > pg_catalog.now());
    IF NOT FOUND THEN
        RAISE EXCEPTION 'role % may not come in through the pooler', p_usename
            USING ERRCODE = 'invalid_authorization_specification';
    END IF;
END
$function$
