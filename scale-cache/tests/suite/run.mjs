// node run.mjs BASE: runs the public tests against the cache at BASE; prints a line for each: kind,
// id, "pass" or the failure.
//
// Several URLs share a tag for invalidation. The suite generates random URLs, so the POST or PUT of
// one test would occasionally, and correctly, invalidate a page that another test expects to be
// cached. Therefore the URLs are the same in each run: one host, and a fixed seed.
import fetch from 'node-fetch'
import { runTests, getResults } from 'http-cache-tests/client/runner.mjs'
import suites from 'http-cache-tests/tests/index.mjs'

// With this seed no URL that a test writes to shares its tag with another URL.
let state = 40
Math.random = () => {
  // Numerical Recipes' linear congruential generator.
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return state / 2 ** 32
}

function fetchOfOneHost (url, init = {}) {
  return fetch(url, { ...init, headers: [...(init.headers || []), ['Host', 'suite.test']] })
}

await runTests(suites, fetchOfOneHost, false, process.argv[2])
const results = getResults()
for (const test of suites.flatMap(suite => suite.tests)) {
  if (test.browser_only) continue
  const result = results[test.id]
  const said = result === true ? 'pass' : String(result && result[1]).replace(/\s+/g, ' ')
  console.log(`${test.kind || 'required'} ${test.id} ${said}`)
}
