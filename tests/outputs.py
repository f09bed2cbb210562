"""What ordinary commands print: nothing of it is a secret, though much of it talks of keys."""

OUTPUTS = {
    "env": """\
SHELL=/bin/bash
PWD=/home/ada/work/My-App2
OLDPWD=/tmp/pytest-of-ada/pytest-12/test_env0
PWD=~/src/app-3
PWD=/tmp/tmp.X8k2Qz9LmN
INIT_CWD=/home/ada/work/app2
LOGNAME=ada
XDG_SESSION_TYPE=tty
SSH_AUTH_SOCK=/tmp/ssh-XXXXXXq8fZ2w/agent.4242
SSH_CONNECTION=10.0.0.5 51234 10.0.0.9 22
GPG_KEY=E3FF2839C048B25C084DEBE9B26995E310250568
PYTHON_SHA256=5ae03e308260164baba39921fdb4dbf8e6d03d8235a939d4582b33f0b5e46a83
LS_COLORS=rs=0:di=01;34:ln=01;36:mh=00:pi=40;33:so=01;35:do=01;35:bd=40;33;01
KUBERNETES_SERVICE_HOST=10.96.0.1
GITHUB_TOKEN_PATH=/run/secrets/token-1
PASSWORD_STORE_DIR=/home/ada/.password-store2
TOKENIZERS_PARALLELISM=false
AWS_DEFAULT_REGION=eu-west-1
KEYTIMEOUT=1
DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus,guid=3f786850e387550fdab836ed7e6dc881
_=/usr/bin/env
""",
    "export": """\
declare -x PWD="/home/ada/App2"
declare -x OLDPWD='/srv/www/site-3'
export PWD=/srv/www/site-3; cd $OLDPWD
""",
    "windows": """\
PWD=C:\\Users\\ada\\app2
USERPROFILE=C:\\Users\\ada
""",
    "ls": """\
total 12
-rw------- 1 ada ada 1679 Nov  3 09:12 id_rsa
-rw-r--r-- 1 ada ada  404 Nov  3 09:12 token.py
drwxr-xr-x 2 ada ada 4096 Nov  3 09:12 secrets
""",
    "git log": """\
commit 3f786850e387550fdab836ed7e6dc881de23001b (HEAD -> main, tag: v2.1.0)
Author: Ada <ada@example.org>
Date:   Mon Nov 23 18:41:00 2026 +0000

    Rotate the api key: use the key_id 2 from now on
""",
    "git diff": """\
index 83db48f..bf269f4 100644
--- a/auth.py
+++ b/auth.py
@@ -1,2 +1,2 @@
-token = get_token(user_id=1)
+token = tokens.issue(user, ttl=3600)
""",
    "git remote": """\
origin	git@github.com:ada/app2.git (fetch)
origin	https://github.com/ada/app2.git (push)
""",
    "ps": """\
ada  4242  0.0  0.1  4242  123 pts/0 Ss 09:12 0:00 postgres: ada app2 127.0.0.1(51234) idle
ada  4243 ssh-agent -s -k /tmp/x1
""",
    "passwd": """\
root:x:0:0:root:/root:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
passwd: password expiry information changed.
password: required pam_unix.so sha512 minlen=12
""",
    "lock": """\
"integrity": "sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17LhbZVGedAJv8XZ1tvj5FvSg==",
"resolved": "https://registry.npmjs.org/js-tokens/-/js-tokens-4.0.0.tgz"
""",
    "pip": """\
attrs==25.3.0 --hash=sha256:427318ce031701fea540783410126f03899a97ffc6f61596ad581ac2e40e3bc3
tokenizers==0.22.1
keyring==25.6.0
""",
    "docker": """\
REPOSITORY TAG IMAGE ID
redis 7 sha256:9e5dd0f4ac8a1b2b8d4d6c3c2e9c5b0ad7e8f9
secret: mounted at /run/secrets/db_password_1
""",
    "kubectl": """\
NAME                  TYPE                                  DATA   AGE
default-token-x7k2q   kubernetes.io/service-account-token   3      42d
""",
    "curl": """\
> GET /v1/users?key=id&order=2 HTTP/2
> authorization: Bearer $TOKEN
< etag: W/"5f3e-Qm9hcmQgZ2FtZXM"
< x-request-id: 7f3c1b9a-2d54-4e7e-9b1e-0c6f7f1d2a3b
""",
    "pytest": """\
tests/test_auth.py::test_password[Password1-ok] PASSED
E   AssertionError: assert token == 'expired'
E   KeyError: 'API_KEY_2'
FAILED tests/test_keys.py::test_secret_2 - assert 1 == 2
""",
    "traceback": """\
  File "/home/ada/app2/auth.py", line 12, in login
    password=self.password or settings.PASSWORD_2,
TypeError: login() got an unexpected keyword argument 'password2'
""",
    "ssh-keygen": """\
SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8 ada@host (ED25519)
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ada
""",
    "journal": """\
Nov 23 18:41:00 host sshd[4242]: Accepted publickey: SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8
Nov 23 18:41:00 host sudo: ada : TTY=pts/0 ; PWD=/home/ada/work/app-2 ; USER=root ; COMMAND=/usr/bin/apt update
""",
    "make": """\
make[1]: Entering directory '/home/ada/work/App-2'
cc -DPWD='"/home/ada/App2"' -o build/token2 token.c
""",
    "sql": """\
id | key        | secret_id | token_type
---+------------+-----------+-----------
 1 | user:42    |         7 | bearer
""",
    "yaml": """\
secretKeyRef:
  name: db-credentials-2
  key: password
imagePullSecrets: [name: registry-2]
""",
    "pg": """\
postgresql://localhost:5432/app2?sslmode=disable
redis://127.0.0.1:6379/0
amqp://rabbit:5672//
""",
}
