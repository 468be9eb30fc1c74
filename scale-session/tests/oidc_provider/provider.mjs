// An OpenID provider for the tests: node provider.mjs PORT REDIRECT ALGORITHM KEY-ID
import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';

const [port, redirect, algorithm, kid] = process.argv.slice(2);
const pair = {
  RS256: () => generateKeyPairSync('rsa', { modulusLength: 2048 }),
  ES256: () => generateKeyPairSync('ec', { namedCurve: 'P-256' }),
  EdDSA: () => generateKeyPairSync('ed25519'),
}[algorithm]();
const jwk = { ...pair.privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: algorithm };
const account = (id) => ({ accountId: id, claims: () => ({ sub: id, email: `${id}@example.org`, email_verified: true }) });
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'shop',
    client_secret: 'a secret of the shop',
    redirect_uris: [redirect],
    id_token_signed_response_alg: algorithm,
  }],
  jwks: { keys: [jwk] },
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256', 'EdDSA'] },
  pkce: { required: () => true, methods: ['S256'] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'] },
  conformIdTokenClaims: false,
  findAccount: (_, id) => account(id),
  cookies: { keys: ['cookies of a test'] },
});
provider.listen(Number(port), '127.0.0.1');
