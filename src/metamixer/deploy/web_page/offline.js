// Keeps the page, the model and the runtime at the first visit, and other files of the folder (WebGPU's) once they are
// loaded, so that the page opens without a network.
"use strict";
const KEPT = {{ kept|tojson }}, AT_ONCE = {{ at_once|tojson }};
self.oninstall = (event) => event.waitUntil(caches.open(KEPT).then((kept) => kept.addAll(AT_ONCE)));
self.onactivate = (event) => event.waitUntil(
  caches.keys().then((names) => Promise.all(names.filter((name) => name !== KEPT).map((name) => caches.delete(name)))));
self.onfetch = (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith(caches.open(KEPT).then(async (kept) => {
    const found = await kept.match(event.request, { ignoreSearch: true });
    if (found) return found;
    const answer = await fetch(event.request);
    if (answer.ok) kept.put(event.request, answer.clone());
    return answer;
  }));
};
