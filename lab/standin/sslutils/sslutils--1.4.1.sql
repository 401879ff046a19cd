-- The functions have the names and the argument order of sslutils 1.4.1; the work is done in pem_sslutils.py.
-- CREATE EXTENSION puts the directory of that file where it says MODULE_PATHNAME.

CREATE FUNCTION sslutils_version() RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT '1.4.1'::text $$;

CREATE FUNCTION openssl_rsa_generate_key(bits integer) RETURNS text LANGUAGE plpython3u STRICT
AS $$
import sys
if "MODULE_PATHNAME" not in sys.path:
    sys.path.append("MODULE_PATHNAME")
import pem_sslutils
return pem_sslutils.generate_key(plpy, bits)
$$;

CREATE FUNCTION openssl_rsa_key_to_csr(
    key text, common_name text, country text, state text, locality text, unit text, email text
) RETURNS text LANGUAGE plpython3u
AS $$
import sys
if "MODULE_PATHNAME" not in sys.path:
    sys.path.append("MODULE_PATHNAME")
import pem_sslutils
return pem_sslutils.key_to_csr(plpy, key, common_name, country, state, locality, unit, email)
$$;

CREATE FUNCTION openssl_csr_to_crt(
    csr text, ca_certificate_path text, key_path text, days integer DEFAULT NULL
) RETURNS text LANGUAGE plpython3u
AS $$
import sys
if "MODULE_PATHNAME" not in sys.path:
    sys.path.append("MODULE_PATHNAME")
import pem_sslutils
return pem_sslutils.csr_to_crt(plpy, csr, ca_certificate_path, key_path, days)
$$;

CREATE FUNCTION openssl_rsa_generate_crl(
    ca_certificate_path text, ca_key_path text, days integer DEFAULT NULL
) RETURNS text LANGUAGE plpython3u
AS $$
import sys
if "MODULE_PATHNAME" not in sys.path:
    sys.path.append("MODULE_PATHNAME")
import pem_sslutils
return pem_sslutils.generate_crl(plpy, ca_certificate_path, ca_key_path, days)
$$;

CREATE FUNCTION openssl_revoke_certificate(
    certificate text, crl_name text, days integer DEFAULT NULL
) RETURNS text LANGUAGE plpython3u
AS $$
import sys
if "MODULE_PATHNAME" not in sys.path:
    sys.path.append("MODULE_PATHNAME")
import pem_sslutils
return pem_sslutils.revoke_certificate(plpy, certificate, crl_name, days)
$$;

CREATE FUNCTION openssl_get_crt_expiry_date(certificate_path text) RETURNS timestamptz
LANGUAGE plpython3u STRICT
AS $$
import sys
if "MODULE_PATHNAME" not in sys.path:
    sys.path.append("MODULE_PATHNAME")
import pem_sslutils
return pem_sslutils.expiry_date(plpy, certificate_path)
$$;

-- 1: expires later than the moment, 0: at that moment, -1: earlier.
CREATE FUNCTION openssl_is_crt_expire_on(certificate_path text, moment timestamptz) RETURNS integer
LANGUAGE sql STRICT
AS $$ SELECT sign(extract(epoch FROM public.openssl_get_crt_expiry_date($1) - $2))::integer $$;
