-- Stand-in for PEM's schema: the roles, tables and functions that agents and poolers meet.
-- Written from the public descriptions; may be run again, which is what an upgrade does.
-- Run it as the installing superuser: the default privileges below belong to that role.

-- Roles ------------------------------------------------------------------------------------------

CREATE SCHEMA IF NOT EXISTS pem;
CREATE SCHEMA IF NOT EXISTS pemdata;
CREATE SCHEMA IF NOT EXISTS pemhistory;

CREATE OR REPLACE FUNCTION pem.create_generic_role(p_name varchar) RETURNS bool
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = p_name) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE ROLE %I NOLOGIN INHERIT', p_name);
    RETURN true;
END
$$;

DO $$
DECLARE
    component text;
BEGIN
    PERFORM pem.create_generic_role(name)
    FROM unnest(ARRAY['pem_super_admin', 'pem_admin', 'pem_user', 'pem_agent', 'pem_agent_pool']) AS name;
    ALTER ROLE pem_admin CREATEROLE;
    GRANT pem_admin TO pem_super_admin;
    GRANT pem_user TO pem_admin;
    FOREACH component IN ARRAY ARRAY['pem_config', 'pem_component', 'pem_rest_api', 'pem_manage_alert',
        'pem_list_barman', 'pem_list_all_assets', 'pem_manage_assets', 'pem_assign_profile']
    LOOP
        PERFORM pem.create_generic_role(component);
        EXECUTE format('GRANT %I TO pem_admin', component);
    END LOOP;
    -- What sslutils 1.4.1 asks of those who have certificates made by the database.
    GRANT pg_read_server_files, pg_write_server_files TO pem_agent;
END
$$;

-- Privileges of what is created below, and by later versions --------------------------------------

GRANT CONNECT, TEMPORARY ON DATABASE pem TO pem_agent;
GRANT CONNECT ON DATABASE pem TO pem_user;
GRANT USAGE ON SCHEMA pem, pemdata, pemhistory TO pem_user, pem_admin, pem_agent;

ALTER DEFAULT PRIVILEGES IN SCHEMA pem GRANT SELECT ON TABLES TO pem_user, pem_agent;
ALTER DEFAULT PRIVILEGES IN SCHEMA pem GRANT ALL ON TABLES TO pem_admin;
ALTER DEFAULT PRIVILEGES IN SCHEMA pem GRANT EXECUTE ON FUNCTIONS TO pem_user, pem_agent, pem_admin;
ALTER DEFAULT PRIVILEGES IN SCHEMA pem GRANT USAGE ON SEQUENCES TO pem_user, pem_agent;
ALTER DEFAULT PRIVILEGES IN SCHEMA pem GRANT ALL ON SEQUENCES TO pem_admin;
ALTER DEFAULT PRIVILEGES IN SCHEMA pemdata, pemhistory GRANT SELECT ON TABLES TO pem_user;
ALTER DEFAULT PRIVILEGES IN SCHEMA pemdata, pemhistory
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO pem_agent;
ALTER DEFAULT PRIVILEGES IN SCHEMA pemdata, pemhistory GRANT ALL ON TABLES TO pem_admin;

-- Tables -----------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS pem.server_group (
    id serial PRIMARY KEY,
    name text NOT NULL UNIQUE
);

CREATE TABLE IF NOT EXISTS pem.agent (
    id int PRIMARY KEY,
    agent_capability_list text[] NOT NULL DEFAULT '{}',
    description text,
    active bool NOT NULL DEFAULT true,
    heartbeat_tolerance int NOT NULL DEFAULT 15,  -- seconds
    version text NOT NULL DEFAULT 'Unknown',
    platform text NOT NULL DEFAULT 'Unknown',
    owner oid NOT NULL DEFAULT quote_ident(current_user)::regrole::oid,
    team text,
    alert_blackout bool NOT NULL DEFAULT false,
    auto_alert_blackout bool NOT NULL DEFAULT false,
    group_id int NOT NULL DEFAULT 0
);

CREATE TABLE IF NOT EXISTS pem.agent_heartbeat (
    agent_id int PRIMARY KEY REFERENCES pem.agent ON DELETE CASCADE,
    last_heartbeat timestamptz NOT NULL
);

-- A backend's process id does not name an agent when a pooler stands between; runtime_id does.
CREATE SEQUENCE IF NOT EXISTS pem.agent_runtime_seq;
CREATE TABLE IF NOT EXISTS pem.agent_runtime (
    agent_id int PRIMARY KEY REFERENCES pem.agent ON DELETE CASCADE,
    process_id int NOT NULL,
    login_time timestamptz NOT NULL,
    runtime_id bigint NOT NULL DEFAULT nextval('pem.agent_runtime_seq'),
    supported_schema int NOT NULL
);

CREATE TABLE IF NOT EXISTS pem.agent_config (
    id serial PRIMARY KEY,
    agent_id int NOT NULL REFERENCES pem.agent ON DELETE CASCADE,
    param text NOT NULL,
    value text,
    label text,
    category text NOT NULL DEFAULT 'configuration' CHECK (category IN ('configuration', 'capability'))
);

CREATE TABLE IF NOT EXISTS pem.server (
    id serial PRIMARY KEY,
    server text NOT NULL,
    port int NOT NULL,
    description text,
    active bool NOT NULL DEFAULT true,
    owner oid NOT NULL DEFAULT quote_ident(current_user)::regrole::oid,
    team text,
    group_id int NOT NULL DEFAULT 0,
    comment text,
    UNIQUE (server, port)
);

CREATE TABLE IF NOT EXISTS pem.agent_server_binding (
    agent_id int NOT NULL REFERENCES pem.agent ON DELETE CASCADE,
    server_id int NOT NULL REFERENCES pem.server ON DELETE CASCADE,
    server text NOT NULL,
    port int NOT NULL,
    username text,
    password text,
    database text,
    sslmode text,
    PRIMARY KEY (agent_id, server_id)
);

CREATE TABLE IF NOT EXISTS pem.server_heartbeat (
    agent_id int NOT NULL REFERENCES pem.agent ON DELETE CASCADE,
    server_id int NOT NULL REFERENCES pem.server ON DELETE CASCADE,
    last_heartbeat timestamptz NOT NULL,
    PRIMARY KEY (agent_id, server_id)
);

CREATE TABLE IF NOT EXISTS pem.server_option (
    server_id int NOT NULL REFERENCES pem.server ON DELETE CASCADE,
    name text NOT NULL,
    value text,
    PRIMARY KEY (server_id, name)
);

CREATE TABLE IF NOT EXISTS pem.config (
    param text PRIMARY KEY,
    value text,
    unit text,
    datatype text
);
INSERT INTO pem.config VALUES ('server_contact_timeout', '48', 'hours', 'integer')
ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS pem.roles (
    rolid oid PRIMARY KEY,
    rolname text NOT NULL
);

CREATE TABLE IF NOT EXISTS pem.probe_schedule (
    agent_id int NOT NULL REFERENCES pem.agent ON DELETE CASCADE,
    probe text NOT NULL,
    next_run timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (agent_id, probe)
);

CREATE TABLE IF NOT EXISTS pem.job (
    jobid serial PRIMARY KEY,
    jobname text NOT NULL UNIQUE,
    jobenabled bool NOT NULL DEFAULT true,
    agent_id int,
    jobnextrun timestamptz
);
INSERT INTO pem.job (jobname, agent_id, jobnextrun)
VALUES ('Check CA certificate expiry', 1, now() + interval '1 day')
ON CONFLICT DO NOTHING;

-- The three kinds of message that PEM's spoolers send; each is announced by NOTIFY.
CREATE TABLE IF NOT EXISTS pem.spool (
    id serial PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('smtp', 'snmp', 'webhook')),
    message text NOT NULL,
    spooled_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz
);

CREATE OR REPLACE FUNCTION pem.announce_spooled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('pem_' || NEW.kind || '_spool', NEW.id::text);
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER announce_spooled AFTER INSERT ON pem.spool
    FOR EACH ROW EXECUTE FUNCTION pem.announce_spooled();

GRANT INSERT, UPDATE, DELETE ON pem.agent_heartbeat, pem.server_heartbeat, pem.agent_runtime,
    pem.agent_config, pem.probe_schedule, pem.job, pem.spool TO pem_agent;
GRANT UPDATE (agent_capability_list, active, version, platform) ON pem.agent TO pem_agent;

-- Row security of pem.agent ------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION pem.is_member(p_role text) RETURNS bool LANGUAGE sql STABLE AS $$
    SELECT coalesce(pg_has_role(current_user, to_regrole(quote_ident(p_role)), 'MEMBER'), false)
$$;

ALTER TABLE pem.agent ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS agent_select ON pem.agent;
DROP POLICY IF EXISTS agent_insert ON pem.agent;
DROP POLICY IF EXISTS agent_update ON pem.agent;
DROP POLICY IF EXISTS agent_delete ON pem.agent;
CREATE POLICY agent_select ON pem.agent FOR SELECT USING (
    owner = quote_ident(current_user)::regrole::oid
    OR pem.is_member('pem_agent') OR pem.is_member('pem_admin') OR pem.is_member(team)
);
CREATE POLICY agent_insert ON pem.agent FOR INSERT WITH CHECK (pem.is_member('pem_admin'));
CREATE POLICY agent_update ON pem.agent FOR UPDATE
    USING (pem.is_member('pem_admin') OR pem.is_member('pem_agent'));
CREATE POLICY agent_delete ON pem.agent FOR DELETE USING (pem.is_member('pem_admin'));

-- Functions that answer questions ------------------------------------------------------------------

-- The number is made up in the pattern of the real ones: the day of release and a digit.
CREATE OR REPLACE FUNCTION pem.schema_version() RETURNS int LANGUAGE sql IMMUTABLE
AS $$ SELECT 202609291 $$;

CREATE OR REPLACE FUNCTION pem.get_data_directory() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
AS $$ SELECT current_setting('data_directory') $$;
CREATE OR REPLACE FUNCTION pem.get_ssl_ca_file() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
AS $$ SELECT current_setting('ssl_ca_file') $$;
CREATE OR REPLACE FUNCTION pem.get_ssl_crt_file() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
AS $$ SELECT current_setting('ssl_cert_file') $$;
CREATE OR REPLACE FUNCTION pem.get_ssl_key_file() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
AS $$ SELECT current_setting('ssl_key_file') $$;
CREATE OR REPLACE FUNCTION pem.get_ssl_crl_file() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
AS $$ SELECT current_setting('ssl_crl_file') $$;
REVOKE ALL ON FUNCTION pem.get_data_directory(), pem.get_ssl_ca_file(), pem.get_ssl_crt_file(),
    pem.get_ssl_key_file(), pem.get_ssl_crl_file() FROM PUBLIC, pem_user;

-- Agents -------------------------------------------------------------------------------------------

-- Two registrations at once fail with PEM before 10.6: "tuple concurrently updated". Which of its
-- statements does it is not public. A GRANT that rewrites one catalog row does the same for real.
CREATE OR REPLACE FUNCTION pem.renew_agent_privileges() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
AS $$ GRANT USAGE ON SCHEMA pemhistory TO pem_agent $$;

-- The id of a new agent, or of an old one that comes back. With the caller's own rights: it takes
-- pem_admin (row security), and CREATEROLE and the right to grant pem_agent if a role is made.
CREATE OR REPLACE FUNCTION pem.create_agent(
    p_description varchar, p_wanted_id int, p_refuse_if_active bool DEFAULT false,
    p_use_agent_user bool DEFAULT false
) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    new_id int;
    was_active bool;
    agent_role text;
BEGIN
    PERFORM pem.renew_agent_privileges();
    PERFORM FROM pem.agent ORDER BY id DESC LIMIT 1 FOR UPDATE;

    SELECT active INTO was_active FROM pem.agent WHERE id = p_wanted_id;
    IF FOUND THEN
        IF p_refuse_if_active AND was_active THEN
            RAISE EXCEPTION 'agent id % belongs to an agent that is active', p_wanted_id;
        END IF;
        UPDATE pem.agent SET active = true, description = p_description WHERE id = p_wanted_id;
        RETURN p_wanted_id;
    END IF;

    IF p_wanted_id > 0 THEN
        new_id := p_wanted_id;
    ELSE
        SELECT coalesce(max(id), 0) + 1 INTO new_id FROM pem.agent;
    END IF;
    INSERT INTO pem.agent (id, description) VALUES (new_id, p_description);

    IF NOT p_use_agent_user THEN
        agent_role := 'agent' || new_id;
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = agent_role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', agent_role);
        END IF;
        EXECUTE format('GRANT pem_agent TO %I', agent_role);
    END IF;
    RETURN new_id;
END
$$;

CREATE OR REPLACE FUNCTION pem.do_heartbeat(p_agent_id int, p_server_ids int[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pem.agent WHERE id = p_agent_id AND active) THEN
        RETURN;
    END IF;
    INSERT INTO pem.agent_heartbeat VALUES (p_agent_id, now())
    ON CONFLICT (agent_id) DO UPDATE SET last_heartbeat = excluded.last_heartbeat;

    INSERT INTO pem.server_heartbeat
    SELECT agent_id, server_id, now() FROM pem.agent_server_binding
    WHERE agent_id = p_agent_id AND server_id = ANY (p_server_ids)
    ON CONFLICT (agent_id, server_id) DO UPDATE SET last_heartbeat = excluded.last_heartbeat;
END
$$;

CREATE OR REPLACE FUNCTION pem.register_pem_server(p_server_id int) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pem.server_option VALUES (p_server_id, 'pem_server', 'true')
    ON CONFLICT (server_id, name) DO UPDATE SET value = excluded.value
$$;

-- Poolers ------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION pem.create_proxy_agent_user(p_name varchar, p_password varchar DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF pem.create_generic_role(p_name) THEN
        EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L', p_name,
            coalesce(p_password, md5(random()::text)));
    ELSE
        RAISE NOTICE 'role "%" already exists', p_name;
    END IF;
    EXECUTE format('GRANT pem_agent_pool, pem_agent TO %I', p_name);
END
$$;

-- As described for the real one, weak points included: no search_path of its own, a password whose
-- VALID UNTIL has passed is handed out all the same, and the default privileges above leave EXECUTE
-- to pem_user and pem_agent.
CREATE OR REPLACE FUNCTION pem.get_agent_pool_auth(p_usename text)
RETURNS TABLE (username text, password text) LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    RETURN QUERY
    SELECT role.rolname::text, role.rolpassword::text FROM pg_authid AS role
    WHERE role.rolname = p_usename AND NOT role.rolsuper AND EXISTS (
        SELECT FROM pg_auth_members AS membership
        JOIN pg_authid AS pool ON pool.oid = membership.roleid
        WHERE membership.member = role.oid AND pool.rolname = 'pem_agent_pool'
    );
END
$$;
REVOKE ALL ON FUNCTION pem.get_agent_pool_auth(text) FROM PUBLIC, pem_admin;
