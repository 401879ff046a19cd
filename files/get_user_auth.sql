-- What PgBouncer asks before it lets a user of another database in: members of pem_fleet_pooled, but
-- no superuser, nobody without LOGIN and nobody whose VALID UNTIL has passed. It knows no agent and
-- no administrator of PEM's: those are known to get_pool_auth alone, and only for database pem.
--
-- Whoever may not come in is an error, for the reason given there.
CREATE OR REPLACE FUNCTION pem_fleet.get_user_auth(p_usename text)
RETURNS TABLE (username text, password text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN QUERY
        SELECT role.rolname::pg_catalog.text, role.rolpassword
        FROM pg_catalog.pg_authid AS role
        WHERE role.rolname = p_usename
          AND role.rolcanlogin
          AND NOT role.rolsuper
          AND (role.rolvaliduntil IS NULL OR role.rolvaliduntil > pg_catalog.now())
          AND EXISTS (SELECT FROM pg_catalog.pg_auth_members AS membership
                      JOIN pg_catalog.pg_authid AS pooled ON pooled.oid = membership.roleid
                      WHERE membership.member = role.oid AND pooled.rolname = 'pem_fleet_pooled')
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_auth_members AS membership
                          JOIN pg_catalog.pg_authid AS pool ON pool.oid = membership.roleid
                          WHERE membership.member = role.oid AND pool.rolname = 'pem_agent_pool');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'role % may not come in through the pooler', p_usename
            USING ERRCODE = 'invalid_authorization_specification';
    END IF;
END
$function$
