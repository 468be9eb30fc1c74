// Passes the server's challenge to the authenticator, and the response back to the server.
const ask = async (path, answer) => {
  const body = answer && new URLSearchParams({ answer: JSON.stringify(answer) });
  const response = await fetch(path, { method: "POST", body });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response;
};

const onClick = (id, work) => {
  const button = document.getElementById(id);
  button?.addEventListener("click", async () => {
    try {
      await work();
      location.assign(button.dataset.next);
    } catch (error) {
      console.error(error);
      document.getElementById("passkey-failed").hidden = false;
    }
  });
};

onClick("passkey-add", async () => {
  const { publicKey } = await (await ask("/passkeys/begin")).json();
  const options = PublicKeyCredential.parseCreationOptionsFromJSON(publicKey);
  const made = await navigator.credentials.create({ publicKey: options });
  await ask("/passkeys/finish", made.toJSON());
});

onClick("passkey-login", async () => {
  const { publicKey } = await (await ask("/login/passkey/begin")).json();
  const options = PublicKeyCredential.parseRequestOptionsFromJSON(publicKey);
  const answer = await navigator.credentials.get({ publicKey: options });
  await ask("/login/passkey/finish", answer.toJSON());
});
