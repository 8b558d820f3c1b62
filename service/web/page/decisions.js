/** Which of many images are anomalies, decided as the service does over the images of a request. */

/**
 * Benjamini and Hochberg's procedure: the largest p_(k) with p_(k) ≤ fdr·k/m. Anomalies are those up to it.
 * @param {number[]} pValues all of the table
 * @param {number} fdr
 * @returns {number} 0 if there is no anomaly
 */
export function cutoffOfFdr(pValues, fdr) {
  const ascending = Float64Array.from(pValues).sort();
  let cutoff = 0;
  ascending.forEach((value, index) => {
    if (value <= (fdr * (index + 1)) / ascending.length) cutoff = value;
  });
  return cutoff;
}
