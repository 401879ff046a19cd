-- What PgBouncer asks before it lets a user in. PEM's own function answers for members of
-- pem_agent_pool; this one closes what it leaves open: it honours VALID UNTIL, its search_path is
-- fixed, and no superuser gets through whatever PEM's function returns.
CREATE OR REPLACE FUNCTION pem_fleet.get_pool_auth(p_usename text)
RETURNS TABLE (username text, password text)
LANGUAGE sql STABLE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT answer.username::pg_catalog.text, answer.password::pg_catalog.text
    FROM pem.get_agent_pool_auth(p_usename) AS answer (username, password)
    JOIN pg_catalog.pg_authid AS role ON role.rolname = answer.username
    WHERE role.rolcanlogin
      AND NOT role.rolsuper
      AND (role.rolvaliduntil IS NULL OR role.rolvaliduntil > pg_catalog.now())
$function$
