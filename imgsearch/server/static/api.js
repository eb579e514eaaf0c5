// Requests to the API: JSON in and out, errors as sentences, another try where the server is busy.
const TRIES = 3;

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

async function reason(response) {
  const { detail } = await response.json().catch(() => ({}));
  if (typeof detail === "string") return detail;
  return detail?.map(({ loc, msg }) => `${loc.slice(1).join(".")}: ${msg}.`).join(" ") ?? `The server answered with status ${response.status}.`;
}

// request("collections/photos/search", { body: { image_id } }): FormData is sent as it is.
export async function request(path, { method, body, signal } = {}) {
  const form = body instanceof FormData;
  const options = { method: method ?? (body ? "POST" : "GET"), signal, body: form || !body ? body : JSON.stringify(body) };
  if (body && !form) options.headers = { "Content-Type": "application/json" };
  for (let tries = 1; ; tries++) {
    let response;
    try {
      response = await fetch(path ? `/api/v1/${path}` : "/api/v1", options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(0, "The server cannot be reached.");
    }
    if (response.ok) return response.status === 204 ? null : response.json();
    const busy = response.status === 503 || response.status === 429;
    if (!busy || tries === TRIES) throw new Failure(response.status, await reason(response));
    await wait(Math.min(5, Number(response.headers.get("Retry-After")) || 1), signal);
  }
}
